//! A closure as a tree map: each path a rectangle as large as its contents, within that of the first path
//! that needs it. Laid out here, so that it needs no script; zooming in is a link.

use std::collections::{BTreeMap, HashSet, VecDeque};

use narinfo::{StorePath, StorePathHash};

use super::format::{ByteCount, PathLabel};
use crate::model::PathRow;

/// Paths of a closure that are drawn.
pub(super) const CLOSURE_MAX: u32 = 2_000;
/// Drawings of one closure, of which the style sheet shows the one that fits the screen: wide, and narrow.
const SHAPES: [Shape; 2] = [
    Shape { class: "wide", width: 1200, height: 560, tiles_max: 320 },
    Shape { class: "small", width: 360, height: 460, tiles_max: 60 },
];
/// Height of the head of a group, which has its name.
const HEAD: f64 = 20.0;
/// Space around the contents of a group.
const PADDING: f64 = 3.0;
/// Width of a character of a name.
const CHARACTER: f64 = 7.2;
/// Colours of groups.
const COLOURS: usize = 6;
/// Smallest side and smallest area of a rectangle that is drawn.
const SIDE_MIN: f64 = 3.0;
const AREA_MIN: f64 = 200.0;

/// Size of a drawing.
struct Shape {
    /// Class of the style sheet.
    class: &'static str,
    width: u32,
    height: u32,
    /// Rectangles that are drawn, the largest ones: a page with thousands would be large.
    tiles_max: usize,
}

/// A rectangle.
#[derive(Clone, Copy, Debug)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// A path in the drawing, or a group of one with what it needs.
pub(super) struct Tile {
    pub(super) label: PathLabel,
    /// Of the path itself.
    pub(super) size: ByteCount,
    /// Of it with what stands within it.
    pub(super) whole: ByteCount,
    area: f64,
    pub(super) x: String,
    pub(super) y: String,
    pub(super) width: String,
    pub(super) height: String,
    /// Where the name stands; empty where there is no room for it.
    pub(super) name: String,
    pub(super) name_x: String,
    pub(super) name_y: String,
    pub(super) colour: usize,
    pub(super) is_group: bool,
}

/// A drawing.
pub(super) struct Drawing {
    pub(super) class: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) tiles: Vec<Tile>,
}

/// A closure.
pub(super) struct Treemap {
    pub(super) drawings: Vec<Drawing>,
    pub(super) paths: usize,
    /// True where the closure has more paths than are drawn.
    pub(super) is_cut: bool,
    pub(super) whole: ByteCount,
    /// The largest paths, for those who cannot see it.
    pub(super) largest: Vec<(PathLabel, ByteCount)>,
}

/// A path with those that it was the first to need.
struct Branch<'r> {
    row: &'r PathRow,
    children: Vec<StorePathHash>,
    /// Bytes of it with its children.
    bytes: u64,
}

impl Treemap {
    /// The closure of the first of these rows.
    pub(super) fn new(rows: &[PathRow]) -> Self {
        let branches = branches(rows);
        let drawing = |shape: &Shape| Some(Drawing::new(shape, &branches, rows.first()?.info.path.hash()));
        Self {
            drawings: SHAPES.iter().filter_map(drawing).collect(),
            paths: rows.len(),
            is_cut: rows.len() >= CLOSURE_MAX as usize,
            whole: ByteCount(rows.iter().map(|row| row.info.nar_size).sum()),
            largest: largest(rows),
        }
    }
}

impl Drawing {
    fn new(shape: &Shape, branches: &BTreeMap<StorePathHash, Branch<'_>>, root: StorePathHash) -> Self {
        let Shape { class, width, height, tiles_max } = *shape;
        let mut drawing = Self { class, width, height, tiles: Vec::new() };
        drawing.draw_root(branches, root);
        let mut order: Vec<usize> = (0..drawing.tiles.len()).collect();
        order.sort_by(|one, other| drawing.tiles[*other].area.total_cmp(&drawing.tiles[*one].area));
        let kept: HashSet<usize> = order.into_iter().take(tiles_max).collect();
        let mut number = 0..;
        drawing.tiles.retain(|_| number.next().is_some_and(|number| kept.contains(&number)));
        drawing
    }

    fn draw_root(&mut self, branches: &BTreeMap<StorePathHash, Branch<'_>>, root: StorePathHash) {
        let whole = Area { x: 0.0, y: 0.0, width: self.width.into(), height: self.height.into() };
        let own = &branches[&root];
        // The path itself, and each of those that it needs with what they need.
        let mut parts = vec![(root, own.row.info.nar_size)];
        parts.extend(own.children.iter().map(|child| (*child, branches[child].bytes)));
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let areas = squarified(&parts.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), whole);
        for (at, ((hash, _), area)) in parts.into_iter().zip(areas).enumerate() {
            let branch = &branches[&hash];
            if hash == root || branch.children.is_empty() {
                self.add(branch.row, branch.row.info.nar_size, area, at % COLOURS, false);
            } else {
                self.draw_group(branches, hash, area, at % COLOURS);
            }
        }
    }

    /// A group: its path, and all that stands within it, side by side.
    fn draw_group(
        &mut self,
        branches: &BTreeMap<StorePathHash, Branch<'_>>,
        group: StorePathHash,
        area: Area,
        colour: usize,
    ) {
        self.add(branches[&group].row, branches[&group].bytes, area, colour, true);
        let inner = Area {
            x: area.x + PADDING,
            y: area.y + HEAD,
            width: area.width - 2.0 * PADDING,
            height: area.height - HEAD - PADDING,
        };
        if inner.width < SIDE_MIN || inner.height < SIDE_MIN {
            return;
        }
        let (mut members, mut next) = (Vec::new(), VecDeque::from([group]));
        while let Some(hash) = next.pop_front() {
            members.push((hash, branches[&hash].row.info.nar_size));
            next.extend(&branches[&hash].children);
        }
        members.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let areas = squarified(&members.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), inner);
        for ((hash, bytes), area) in members.into_iter().zip(areas) {
            self.add(branches[&hash].row, bytes, area, colour, false);
        }
    }

    fn add(&mut self, row: &PathRow, bytes: u64, area: Area, colour: usize, is_group: bool) {
        let is_small = area.width < SIDE_MIN || area.height < SIDE_MIN;
        if is_small || area.width * area.height < AREA_MIN {
            return;
        }
        let label = PathLabel::new(row.info.path.to_string());
        let room = ((area.width - 10.0) / CHARACTER).max(0.0) as usize;
        let has_room = room >= 4 && area.height >= HEAD;
        // One character less where it is cut, for the ellipsis.
        let room = if label.name().chars().count() > room { room.saturating_sub(1) } else { room };
        let name = if has_room { crate::escape::in_one_line(label.name(), room) } else { String::new() };
        let number = |value: f64| format!("{value:.1}");
        self.tiles.push(Tile {
            size: ByteCount(row.info.nar_size),
            whole: ByteCount(bytes),
            area: area.width * area.height,
            x: number(area.x),
            y: number(area.y),
            width: number(area.width),
            height: number(area.height),
            name,
            name_x: number(area.x + 6.0),
            name_y: number(area.y + 14.0),
            colour,
            is_group,
            label,
        });
    }
}

fn largest(rows: &[PathRow]) -> Vec<(PathLabel, ByteCount)> {
    const LISTED: usize = 10;
    let mut sizes: Vec<(u64, &StorePath)> =
        rows.iter().map(|row| (row.info.nar_size, &row.info.path)).collect();
    sizes.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let named = |(bytes, path): (u64, &StorePath)| (PathLabel::new(path.to_string()), ByteCount(bytes));
    sizes.into_iter().take(LISTED).map(named).collect()
}

/// The paths as a tree, in which each stands below the first that needs it.
fn branches(rows: &[PathRow]) -> BTreeMap<StorePathHash, Branch<'_>> {
    let mut branches: BTreeMap<StorePathHash, Branch<'_>> = rows
        .iter()
        .map(|row| (row.info.path.hash(), Branch { row, children: Vec::new(), bytes: row.info.nar_size }))
        .collect();
    let Some(root) = rows.first() else { return branches };
    let (mut order, mut parents) = (vec![root.info.path.hash()], BTreeMap::new());
    let mut at = 0;
    while let Some(hash) = order.get(at).copied() {
        at += 1;
        let references: Vec<StorePathHash> =
            branches[&hash].row.info.references.iter().map(StorePath::hash).collect();
        for reference in references {
            let is_new = reference != order[0] && !parents.contains_key(&reference);
            if is_new && branches.contains_key(&reference) {
                parents.insert(reference, hash);
                order.push(reference);
                branches.entry(hash).and_modify(|branch| branch.children.push(reference));
            }
        }
    }
    // From the leaves up.
    for hash in order.into_iter().rev() {
        let bytes = branches[&hash].bytes;
        if let Some(parent) = parents.get(&hash) {
            branches.entry(*parent).and_modify(|branch| branch.bytes += bytes);
        }
    }
    branches
}

/// Areas as large as these weights, the largest first, which fill another and are as square as may be
/// (Bruls, Huizing and van Wijk, "Squarified treemaps", 2000).
fn squarified(weights: &[u64], area: Area) -> Vec<Area> {
    let total: f64 = weights.iter().map(|weight| (*weight).max(1) as f64).sum();
    let scale = area.width * area.height / total;
    let sizes: Vec<f64> = weights.iter().map(|weight| (*weight).max(1) as f64 * scale).collect();
    let (mut placed, mut rest, mut from) = (Vec::new(), area, 0);
    while from < sizes.len() {
        let side = rest.width.min(rest.height).max(f64::EPSILON);
        // The first is the largest and the last the smallest: one of both is the least square.
        let worst = |sum: f64, smallest: f64| {
            let squared = sum * sum / (side * side);
            (sizes[from] / squared).max(squared / smallest)
        };
        let (mut to, mut sum) = (from + 1, sizes[from]);
        while to < sizes.len() && worst(sum + sizes[to], sizes[to]) <= worst(sum, sizes[to - 1]) {
            sum += sizes[to];
            to += 1;
        }
        let thickness = sum / side;
        let mut along = 0.0;
        for size in &sizes[from..to] {
            let length = size / thickness;
            placed.push(if rest.width >= rest.height {
                Area { x: rest.x, y: rest.y + along, width: thickness, height: length }
            } else {
                Area { x: rest.x + along, y: rest.y, width: length, height: thickness }
            });
            along += length;
        }
        if rest.width >= rest.height {
            (rest.x, rest.width) = (rest.x + thickness, rest.width - thickness);
        } else {
            (rest.y, rest.height) = (rest.y + thickness, rest.height - thickness);
        }
        from = to;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_as_large_as_their_weights_and_fill_the_whole() {
        let whole = Area { x: 0.0, y: 0.0, width: 600.0, height: 400.0 };
        let areas = squarified(&[6, 6, 4, 3, 2, 2, 1], whole);
        let sizes: Vec<f64> = areas.iter().map(|area| area.width * area.height).collect();
        for (size, weight) in sizes.iter().zip([6.0, 6.0, 4.0, 3.0, 2.0, 2.0, 1.0]) {
            assert!((size - weight * 10_000.0).abs() < 1.0, "{size} for {weight}");
        }
        for area in &areas {
            assert!(
                area.x >= -0.01 && area.x + area.width < 600.01 && area.y + area.height < 400.01,
                "{area:?}"
            );
            assert!(area.width / area.height < 4.0 && area.height / area.width < 4.0, "{area:?}");
        }
        assert_eq!(squarified(&[0, 0], whole).len(), 2);
        assert!(squarified(&[], whole).is_empty());
    }

    #[test]
    fn a_closure_of_thousands_of_paths_has_few_rectangles() {
        let hash = |number: usize| format!("{number:0>32}");
        let path = |number: usize| StorePath::parse(&format!("{}-p{number}", hash(number))).expect("a path");
        let row = |number: usize| PathRow {
            info: narinfo::PathInfo {
                path: path(number),
                nar_hash: narinfo::NarHash::from_bytes([0; 32]),
                nar_size: 1000,
                references: (1..=5).map(|next| path(number * 5 + next)).collect(),
                deriver: None,
                ca: None,
                signatures: Vec::new(),
            },
            built: true,
        };
        let rows: Vec<PathRow> = (0..CLOSURE_MAX as usize).map(row).collect();
        let map = Treemap::new(&rows);
        assert!(map.is_cut && map.drawings.len() == SHAPES.len());
        for (drawing, shape) in map.drawings.iter().zip(&SHAPES) {
            assert!((5..=shape.tiles_max).contains(&drawing.tiles.len()), "{}", drawing.tiles.len());
        }
        assert_eq!(map.drawings[0].tiles.len(), SHAPES[0].tiles_max, "though all are of one size");
        assert!(Treemap::new(&[]).drawings.is_empty());
    }
}
