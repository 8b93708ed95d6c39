//! A drawing of a derivation and what it needs, laid out here: nodes in columns, and curves between them.

use super::format::PathLabel;

/// Inputs that are drawn.
const DRAWN_MAX: usize = 60;
/// Nodes in one column.
const ROWS_MAX: usize = 20;
/// Width of a column, and of the node in it.
const COLUMN: usize = 260;
const NODE_WIDTH: usize = 210;
/// Height of a row, and of the node in it.
const ROW: usize = 40;
const NODE_HEIGHT: usize = 30;
/// Characters of a name that fit into a node.
const NAME_CHARS: usize = 24;

/// A derivation in a drawing.
pub(super) struct Node {
    pub(super) label: PathLabel,
    /// Word for its state.
    pub(super) state: &'static str,
}

/// A node with its place.
pub(super) struct PlacedNode {
    pub(super) node: Node,
    pub(super) x: usize,
    pub(super) y: usize,
}

/// A drawing.
pub(super) struct Graph {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) nodes: Vec<PlacedNode>,
    /// Paths of the curves, in SVG's language.
    pub(super) curves: Vec<String>,
    /// The derivation itself.
    pub(super) target: PathLabel,
    pub(super) target_x: usize,
    pub(super) target_y: usize,
    /// Inputs that are not drawn.
    pub(super) left_out: usize,
    /// Inputs that are served, of all.
    pub(super) served: usize,
    pub(super) total: usize,
}

impl Graph {
    /// A drawing of some of `total` inputs of a derivation. Those that are not served stand first.
    pub(super) fn new(target: PathLabel, mut inputs: Vec<Node>, total: usize) -> Self {
        let served = inputs.iter().filter(|node| node.state == "served").count();
        inputs.sort_by(|a, b| {
            let key = |node: &Node| (node.state == "served", node.label.name().to_owned());
            key(a).cmp(&key(b))
        });
        inputs.truncate(DRAWN_MAX);
        let columns = inputs.len().div_ceil(ROWS_MAX).max(1);
        let rows = inputs.len().div_ceil(columns).max(1);
        let (height, target_x) = (rows * ROW, columns * COLUMN);
        let target_y = (height - NODE_HEIGHT) / 2;
        let mut nodes = Vec::new();
        let mut curves = Vec::new();
        let left_out = total.saturating_sub(inputs.len());
        for (at, node) in inputs.into_iter().enumerate() {
            let (x, y) = (at / rows * COLUMN, at % rows * ROW + (ROW - NODE_HEIGHT) / 2);
            let (from_x, from_y) = (x + NODE_WIDTH, y + NODE_HEIGHT / 2);
            let (to_x, to_y) = (target_x, target_y + NODE_HEIGHT / 2);
            let bend = (COLUMN - NODE_WIDTH) / 2;
            // Curves of the columns further away bend in the last gap.
            let straight = to_x - 2 * bend;
            curves.push(format!(
                "M{from_x} {from_y}H{straight}C{} {from_y} {} {to_y} {to_x} {to_y}",
                straight + bend,
                to_x - bend
            ));
            nodes.push(PlacedNode { node, x, y });
        }
        let width = target_x + NODE_WIDTH;
        Self { width, height, nodes, curves, target, target_x, target_y, left_out, served, total }
    }

    /// Name of a node, cut where it would not fit.
    pub(super) fn fitting(&self, label: &PathLabel) -> String {
        crate::escape::in_one_line(label.name(), NAME_CHARS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_nodes_overlap_and_those_that_lack_stand_first() {
        let node = |number: usize| Node {
            label: PathLabel::new(format!("{number:032}-n{number}.drv")),
            state: if number == 7 { "building" } else { "served" },
        };
        let graph = Graph::new(PathLabel::new("x-target.drv"), (0..100).map(node).collect(), 100);
        assert_eq!((graph.nodes.len(), graph.left_out, graph.served), (DRAWN_MAX, 40, 99));
        assert_eq!(graph.nodes[0].node.state, "building");
        let mut places: Vec<_> = graph.nodes.iter().map(|node| (node.x, node.y)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), DRAWN_MAX);
        assert!(graph.nodes.iter().all(|node| node.x + NODE_WIDTH < graph.target_x));
    }
}
