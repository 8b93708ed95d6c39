//! What stays in the NAR store when it is too full: all in one order, and the end of that order goes.
//! What a path refers to stays for as long as that path is served, so a closure is never broken. Plain code; loses nothing itself.

use std::collections::HashSet;
use std::time::SystemTime;

use narinfo::{NarHash, StorePath};

use crate::index::{Holding, Holdings, Loss};

/// What may stay.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of files above which something goes; `None` is no limit.
    pub max_bytes: Option<u64>,
    /// What was used since then stays, whatever the limit.
    pub used_since: SystemTime,
}

/// Once something has to go, a twentieth of the limit is freed: else there would be something to do for each NAR that comes.
const FREED_PART: u64 = 20;

/// What the choice came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The NARs that go, the least used first.
    pub gone: Vec<Gone>,
    /// Bytes of the files that stay.
    pub kept_bytes: u64,
    /// Those of them that are pinned, or that something pinned refers to.
    pub pinned_bytes: u64,
    /// Those of them that are not, and were used lately, or that something used lately refers to.
    pub in_use_bytes: u64,
}

impl Outcome {
    /// Bytes of the files that go.
    #[must_use]
    pub fn gone_bytes(&self) -> u64 {
        self.gone.iter().map(|gone| gone.bytes).sum()
    }
}

/// A NAR that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// A path that has it; `None` where none is served.
    pub path: Option<StorePath>,
    /// The NAR.
    pub nar: NarHash,
    /// Bytes of its file.
    pub bytes: u64,
}

/// Why a path stays, the better reason being the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It was used last then: it stays where there is room.
    Used(SystemTime),
    /// It was used lately, or nobody but the Nix store has the contents yet.
    InUse,
    Pinned,
}

/// Chooses what goes. A NAR that no path has always does.
#[must_use]
pub fn choose(holdings: &Holdings, bounds: &Bounds) -> (Loss, Outcome) {
    let paths = &holdings.paths;
    let room = room(paths, bounds.max_bytes);
    let (mut outcome, mut loss) = (Outcome::default(), Loss::default());
    let (mut kept, mut served) = (HashSet::new(), vec![false; paths.len()]);
    let (mut full, mut leaving) = (false, Vec::new());
    for (place, worth) in in_order(paths, bounds.used_since) {
        let holding = &paths[place];
        let bytes = holding.file_bytes.filter(|_| !kept.contains(&holding.nar));
        full |= matches!(worth, Worth::Used(_)) && outcome.kept_bytes + bytes.unwrap_or(0) > room;
        if !full {
            served[place] = true;
            if let Some(bytes) = bytes {
                kept.insert(holding.nar);
                outcome.kept_bytes += bytes;
                match worth {
                    Worth::Pinned => outcome.pinned_bytes += bytes,
                    Worth::InUse => outcome.in_use_bytes += bytes,
                    Worth::Used(_) => {}
                }
            }
            continue;
        }
        // It stays served where its contents can still be had, and all that it refers to.
        let to_be_had = holding.upstream || kept.contains(&holding.nar);
        served[place] = to_be_had && holding.references.iter().all(|other| served[*other]);
        leaving.push(place);
    }
    let unused = holdings.unused.iter().map(|row| (None, row.nar_hash, Some(row.file_size)));
    let used = leaving.iter().rev().map(|place| &paths[*place]);
    for (path, nar, bytes) in unused.chain(used.map(|h| (Some(h.path.clone()), h.nar, h.file_bytes))) {
        if let Some(bytes) = bytes.filter(|_| kept.insert(nar)) {
            loss.nars.push(nar);
            outcome.gone.push(Gone { path, nar, bytes });
        }
    }
    loss.paths =
        leaving.into_iter().filter(|place| !served[*place]).map(|place| paths[place].path.clone()).collect();
    (loss, outcome)
}

/// Bytes for which there is room.
fn room(paths: &[Holding], max_bytes: Option<u64>) -> u64 {
    let Some(max_bytes) = max_bytes else { return u64::MAX };
    let mut counted = HashSet::new();
    let files =
        paths.iter().filter(|holding| counted.insert(holding.nar)).filter_map(|holding| holding.file_bytes);
    if files.sum::<u64>() <= max_bytes { max_bytes } else { max_bytes - max_bytes / FREED_PART }
}

/// All paths, those that are to stay first, and why each does. What a path refers to comes before it, and has at least its
/// worth.
fn in_order(paths: &[Holding], used_since: SystemTime) -> Vec<(usize, Worth)> {
    let mut own: Vec<(Worth, usize)> =
        paths.iter().enumerate().map(|(place, holding)| (worth(holding, used_since), place)).collect();
    own.sort_unstable_by(|a, b| b.cmp(a));
    let (mut order, mut seen) = (Vec::with_capacity(paths.len()), vec![false; paths.len()]);
    for (worth, top) in own {
        // Each path on the way down, with how many of its references were looked at.
        let mut way = Vec::new();
        if !std::mem::replace(&mut seen[top], true) {
            way.push((top, 0));
        }
        while let Some((place, looked_at)) = way.last_mut() {
            match paths[*place].references.get(*looked_at) {
                Some(below) => {
                    *looked_at += 1;
                    if !std::mem::replace(&mut seen[*below], true) {
                        way.push((*below, 0));
                    }
                }
                None => {
                    order.push((*place, worth));
                    way.pop();
                }
            }
        }
    }
    order
}

fn worth(holding: &Holding, used_since: SystemTime) -> Worth {
    if holding.pinned {
        return Worth::Pinned;
    }
    let only_in_nix = holding.file_bytes.is_none() && !holding.upstream;
    if only_in_nix || holding.used_at >= used_since { Worth::InUse } else { Worth::Used(holding.used_at) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::index::NarRow;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn nar(number: usize) -> NarHash {
        NarHash::from_bytes([u8::try_from(number).expect("few"); 32])
    }

    /// Paths of 100 bytes each: when each was used last, and what it refers to.
    fn holdings(paths: &[(u64, &[usize])]) -> Holdings {
        let paths = paths.iter().enumerate().map(|(place, (used_at, references))| Holding {
            path: StorePath::parse(&format!("{place:032}-p")).expect("a path"),
            nar: nar(place),
            file_bytes: Some(100),
            upstream: false,
            used_at: at(*used_at),
            pinned: false,
            references: references.to_vec(),
        });
        Holdings { paths: paths.collect(), unused: Vec::new() }
    }

    /// The numbers of the paths and of the NARs that go, in order, and what it came to.
    fn chosen(holdings: &Holdings, max_bytes: u64, used_since: u64) -> (Vec<usize>, Vec<usize>, Outcome) {
        let bounds = Bounds { max_bytes: Some(max_bytes), used_since: at(used_since) };
        let (loss, outcome) = choose(holdings, &bounds);
        let mut paths: Vec<usize> =
            loss.paths.iter().map(|path| path.hash().as_str().parse().expect("one")).collect();
        paths.sort_unstable();
        assert_eq!(loss.nars, outcome.gone.iter().map(|gone| gone.nar).collect::<Vec<_>>());
        (paths, loss.nars.iter().map(|nar| nar.as_bytes()[0].into()).collect(), outcome)
    }

    const NEVER: u64 = 1_000_000;

    #[test]
    fn what_was_used_longest_ago_goes_first_and_no_more_than_must() {
        let held = holdings(&[(3, &[]), (1, &[]), (4, &[]), (2, &[])]);
        assert_eq!(chosen(&held, 400, NEVER).1, Vec::<usize>::new());
        assert_eq!(chosen(&held, 399, NEVER).1, [1]);
        let (paths, nars, outcome) = chosen(&held, 220, NEVER);
        assert_eq!((paths, nars), (vec![1, 3], vec![1, 3]));
        assert_eq!(outcome.kept_bytes, 200);
        // Within the limit, but not within what is left of it once something has to go.
        assert_eq!(chosen(&held, 301, NEVER).1, [1, 3]);
    }

    #[test]
    fn what_a_path_needs_goes_after_it_however_long_ago_it_was_used_itself() {
        // 2 needs 1, which needs 0; nobody has asked for those since.
        let held = holdings(&[(1, &[]), (2, &[0]), (9, &[1]), (5, &[])]);
        assert_eq!(chosen(&held, 330, NEVER).1, [3]);
        assert_eq!(chosen(&held, 220, NEVER).1, [3, 2]);
        assert_eq!(chosen(&held, 110, NEVER).1, [3, 2, 1]);
    }

    #[test]
    fn for_every_limit_what_stays_served_has_all_that_it_refers_to() {
        let shape: &[(u64, &[usize])] =
            &[(5, &[]), (1, &[0]), (7, &[0]), (3, &[1, 2]), (7, &[2]), (2, &[3, 4]), (6, &[]), (2, &[6, 1])];
        let mut held = holdings(shape);
        held.paths[2].upstream = true;
        held.paths[5].upstream = true;
        held.paths[7].pinned = true;
        for limit in 0..900 {
            let (gone, nars, outcome) = chosen(&held, limit, 7);
            for (place, holding) in held.paths.iter().enumerate().filter(|(place, _)| !gone.contains(place)) {
                assert!(
                    holding.references.iter().all(|below| !gone.contains(below)),
                    "limit {limit}, path {place}"
                );
                assert!(
                    holding.upstream || !nars.contains(&place),
                    "limit {limit}: path {place} has no contents"
                );
            }
            let in_use = outcome.pinned_bytes + outcome.in_use_bytes;
            assert!(outcome.kept_bytes <= limit.max(in_use), "limit {limit}: {outcome:?}");
        }
    }

    #[test]
    fn pins_and_what_is_in_use_stay_with_their_closures() {
        let mut held = holdings(&[(1, &[]), (2, &[0]), (3, &[]), (9, &[2]), (4, &[])]);
        held.paths[1].pinned = true;
        let (paths, nars, outcome) = chosen(&held, 0, 9);
        assert_eq!((paths, nars), (vec![4], vec![4]));
        assert_eq!((outcome.pinned_bytes, outcome.in_use_bytes, outcome.kept_bytes), (200, 200, 400));
    }

    #[test]
    fn what_an_upstream_has_stays_served_unless_it_needs_what_does_not() {
        let mut held = holdings(&[(1, &[]), (2, &[]), (2, &[1])]);
        for upstream in [0, 2] {
            held.paths[upstream].upstream = true;
        }
        let (paths, nars, _) = chosen(&held, 0, NEVER);
        assert_eq!((paths, nars.len()), (vec![1, 2], 3));
    }

    #[test]
    fn what_nobody_but_the_nix_store_has_yet_is_not_forgotten() {
        let mut held = holdings(&[(1, &[]), (2, &[0])]);
        held.paths[1].file_bytes = None;
        assert_eq!(chosen(&held, 0, NEVER).0, Vec::<usize>::new());
    }

    #[test]
    fn equal_contents_count_once_and_go_with_the_last_path_that_has_them() {
        let mut held = holdings(&[(1, &[]), (9, &[]), (5, &[])]);
        held.paths[0].nar = held.paths[1].nar;
        assert_eq!(chosen(&held, 200, NEVER).1, Vec::<usize>::new());
        let (paths, nars, _) = chosen(&held, 110, NEVER);
        assert_eq!(
            (paths, nars),
            (vec![2], vec![2]),
            "the first one's contents are there for the second's sake"
        );
    }

    #[test]
    fn a_nar_that_no_path_has_goes_first_and_without_need() {
        let mut held = holdings(&[(1, &[])]);
        held.unused.push(NarRow { nar_hash: nar(7), file_hash: nar(7), file_size: 50 });
        let (loss, outcome) = choose(&held, &Bounds { max_bytes: None, used_since: at(NEVER) });
        assert_eq!((loss.paths, loss.nars), (vec![], vec![nar(7)]));
        assert_eq!(outcome.kept_bytes, 100);
    }
}
