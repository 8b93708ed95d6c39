//! Disk space of stored NARs, by the closures that need them and by package set. Reads the index once, page
//! by page, and changes nothing.

use std::collections::{BTreeSet, HashMap};

use narinfo::{NarHash, StorePath, StorePathHash};

use super::{Error, Retention};
use crate::model::PathRow;
use crate::tasks::blocking;

/// Disk space of the NAR store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Closures of paths that no other path refers to, the largest first.
    pub closures: Vec<ClosureUsage>,
    /// Closures of the outputs of package sets.
    pub sets: Vec<SetUsage>,
}

/// Disk space of a closure. Paths with equal contents share a file, which counts for each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosureUsage {
    /// The path that the closure is of.
    pub path: StorePath,
    /// Paths of the closure.
    pub paths: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes that no other closure needs: they would become free without this one.
    pub exclusive_bytes: u64,
}

/// Disk space of a package set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUsage {
    /// Its name.
    pub name: String,
    /// Outputs of its attributes that are served.
    pub outputs: u64,
    /// Paths of their closure.
    pub paths: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

impl Retention {
    /// Disk space by closure, so many at most, and by these package sets.
    ///
    /// # Errors
    /// The index fails.
    pub async fn usage(&self, sets: Vec<String>, closures_max: usize) -> Result<Usage, Error> {
        let index = &self.0.index;
        let (mut files, mut after) = (HashMap::new(), None);
        loop {
            let rows = index.nars(after).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.nar_hash);
            files.extend(rows.iter().map(|row| (row.nar_hash, row.file_size)));
        }
        let (mut graph, mut after) = (UsageGraph::default(), None);
        loop {
            let rows = index.paths_after(after).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.info.path.hash());
            rows.iter().for_each(|row| graph.add(row, &files));
        }
        let mut derivations = Vec::new();
        for set in sets {
            let drvs = index.allowed_derivations(set.clone()).await?;
            derivations.push((set, drvs));
        }
        Ok(blocking(move || graph.measure(derivations, closures_max)).await)
    }
}

/// Served paths and their references, with numbers for hashes: an index may have a million.
#[derive(Debug, Default)]
struct UsageGraph {
    numbers: HashMap<StorePathHash, u32>,
    nodes: Vec<UsageNode>,
}

#[derive(Debug, Default)]
struct UsageNode {
    /// `None` for a path that others refer to and that is not served.
    path: Option<StorePath>,
    deriver: Option<StorePath>,
    bytes: u64,
    references: Vec<u32>,
    is_referenced: bool,
}

impl UsageGraph {
    fn number(&mut self, hash: StorePathHash) -> u32 {
        let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(hash).or_insert(next);
        if number == next {
            self.nodes.push(UsageNode::default());
        }
        number
    }

    fn add(&mut self, row: &PathRow, files: &HashMap<NarHash, u64>) {
        let info = &row.info;
        let number = self.number(info.path.hash());
        let others = info.references.iter().filter(|reference| **reference != info.path);
        let references: Vec<u32> = others.map(|reference| self.number(reference.hash())).collect();
        for reference in &references {
            self.nodes[*reference as usize].is_referenced = true;
        }
        let node = &mut self.nodes[number as usize];
        node.path = Some(info.path.clone());
        node.deriver = info.deriver.clone();
        node.bytes = files.get(&info.nar_hash).copied().unwrap_or_default();
        node.references = references;
    }

    /// The paths of the closure of some, each once.
    fn closure(&self, roots: impl IntoIterator<Item = u32>, seen: &mut [u32], mark: u32) -> Vec<u32> {
        let (mut open, mut closure): (Vec<u32>, Vec<u32>) = (roots.into_iter().collect(), Vec::new());
        while let Some(number) = open.pop() {
            if std::mem::replace(&mut seen[number as usize], mark) != mark {
                closure.push(number);
                open.extend(&self.nodes[number as usize].references);
            }
        }
        closure
    }

    fn bytes(&self, closure: &[u32]) -> u64 {
        closure.iter().map(|number| self.nodes[*number as usize].bytes).sum()
    }

    fn measure(&self, sets: Vec<(String, BTreeSet<StorePath>)>, closures_max: usize) -> Usage {
        let numbers = 0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let is_top = |number: &u32| {
            let node = &self.nodes[*number as usize];
            node.path.is_some() && !node.is_referenced
        };
        let tops: Vec<u32> = numbers.clone().filter(is_top).collect();
        let (mut seen, mut owners, mut mark) = (vec![0; self.nodes.len()], vec![0_u32; self.nodes.len()], 0);
        let mut closures = Vec::new();
        for top in tops {
            mark += 1;
            let closure = self.closure([top], &mut seen, mark);
            closure.iter().for_each(|number| owners[*number as usize] += 1);
            closures.push((self.bytes(&closure), top));
        }
        closures.sort_by(|one, other| other.cmp(one));
        closures.truncate(closures_max);
        let closures = closures.into_iter().filter_map(|(bytes, top)| {
            mark += 1;
            let closure = self.closure([top], &mut seen, mark);
            let own: Vec<u32> =
                closure.iter().copied().filter(|number| owners[*number as usize] == 1).collect();
            Some(ClosureUsage {
                path: self.nodes[top as usize].path.clone()?,
                paths: closure.len() as u64,
                bytes,
                exclusive_bytes: self.bytes(&own),
            })
        });
        let closures = closures.collect();
        let sets = sets.into_iter().map(|(name, drvs)| {
            let is_output = |number: &u32| {
                let node = &self.nodes[*number as usize];
                node.path.is_some() && node.deriver.as_ref().is_some_and(|drv| drvs.contains(drv))
            };
            let outputs: Vec<u32> = numbers.clone().filter(is_output).collect();
            let count = outputs.len() as u64;
            let mut seen = vec![0; self.nodes.len()];
            let closure = self.closure(outputs, &mut seen, 1);
            SetUsage { name, outputs: count, paths: closure.len() as u64, bytes: self.bytes(&closure) }
        });
        Usage { closures, sets: sets.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: u64) -> StorePath {
        StorePath::parse(&format!("{number:032}-p{number}")).expect("a path")
    }

    fn graph(paths: &[(u64, &[u64], Option<u64>)]) -> UsageGraph {
        let mut graph = UsageGraph::default();
        for (number, references, deriver) in paths {
            let at = graph.number(path(*number).hash()) as usize;
            let references: Vec<u32> =
                references.iter().map(|reference| graph.number(path(*reference).hash())).collect();
            references.iter().for_each(|reference| graph.nodes[*reference as usize].is_referenced = true);
            let node = &mut graph.nodes[at];
            (node.path, node.bytes, node.references) =
                (Some(path(*number)), 10_u64.pow(*number as u32), references);
            node.deriver = deriver.map(path);
        }
        graph
    }

    #[test]
    fn closures_are_measured_with_what_they_share_and_what_is_theirs_alone() {
        let graph = graph(&[(0, &[], None), (1, &[0], None), (2, &[0, 1], Some(9)), (3, &[0], None)]);
        let sets = vec![("pkgs".to_owned(), BTreeSet::from([path(9)])), ("none".to_owned(), BTreeSet::new())];
        let usage = graph.measure(sets, 5);
        let closures: Vec<_> = usage
            .closures
            .iter()
            .map(|closure| (closure.path.clone(), closure.paths, closure.bytes, closure.exclusive_bytes))
            .collect();
        assert_eq!(closures, [(path(3), 2, 1001, 1000), (path(2), 3, 111, 110)]);
        let sets: Vec<_> =
            usage.sets.iter().map(|set| (&*set.name, set.outputs, set.paths, set.bytes)).collect();
        assert_eq!(sets, [("pkgs", 1, 3, 111), ("none", 0, 0, 0)]);
        assert_eq!(graph.measure(Vec::new(), 1).closures.len(), 1);
    }

    #[test]
    fn nothing_has_no_size_and_a_path_that_is_not_served_counts_nothing() {
        assert_eq!(UsageGraph::default().measure(Vec::new(), 5), Usage::default());
        let mut graph = UsageGraph::default();
        graph.number(path(1).hash());
        assert_eq!(graph.measure(Vec::new(), 5), Usage::default());
    }
}
