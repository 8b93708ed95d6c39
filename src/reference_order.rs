//! Order by references, as closures are pushed, published and withdrawn in it.

use std::collections::{BTreeMap, BTreeSet};

/// The items, each after those that it refers to; where these go round in a circle, which no Nix store has,
/// after as many of them as can be. References to others count for nothing.
pub fn after_references<K: Ord + Clone, V, R>(
    mut items: BTreeMap<K, V>,
    references: impl Fn(&V) -> &R,
) -> Vec<V>
where
    for<'r> &'r R: IntoIterator<Item = &'r K>,
{
    let (mut ordered, mut entered) = (Vec::with_capacity(items.len()), BTreeSet::new());
    while let Some(root) = items.keys().next().cloned() {
        // An item stays on the stack until its references are done; a second look finds none of them left.
        let mut stack = vec![root];
        while let Some(key) = stack.last().cloned() {
            match items.get(&key) {
                Some(item) if entered.insert(key.clone()) => {
                    let open = |key: &&K| items.contains_key(key) && !entered.contains(key);
                    stack.extend(references(item).into_iter().filter(open).cloned());
                }
                _ => {
                    stack.pop();
                    ordered.extend(items.remove(&key));
                }
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(items: &[(u8, &[u8])]) -> Vec<u8> {
        let items = items.iter().map(|(key, references)| (*key, (*key, references.to_vec())));
        after_references(items.collect(), |(_, references)| references)
            .into_iter()
            .map(|item| item.0)
            .collect()
    }

    #[test]
    fn what_refers_to_others_stands_behind_them_and_a_circle_has_all_of_its_members_once() {
        assert_eq!(ordered(&[(1, &[2, 1, 9]), (2, &[3]), (3, &[]), (4, &[3, 1])]), [3, 2, 1, 4]);
        let mut circle = ordered(&[(1, &[2]), (2, &[1, 3]), (3, &[2])]);
        circle.sort_unstable();
        assert_eq!(circle, [1, 2, 3]);
    }
}
