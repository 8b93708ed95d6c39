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
/// Width of the drawing for small screens, and of the space before inputs there.
const SMALL_WIDTH: usize = 340;
const INDENT: usize = 28;
/// Width of a character, and room that a name does not have, in characters.
const CHARACTER: usize = 7;
const NAME_MARGIN: usize = 6;

/// A derivation in a drawing.
pub(super) struct Node {
    pub(super) label: PathLabel,
    /// Word for its state.
    pub(super) state: &'static str,
}

/// A drawing.
pub(super) struct GraphDrawing {
    /// Class of the style sheet, which shows the drawing that fits the screen.
    pub(super) class: &'static str,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) node_width: usize,
    /// Places of the nodes, in their order.
    pub(super) places: Vec<(usize, usize)>,
    /// Paths of the curves, in SVG's language.
    pub(super) curves: Vec<String>,
    /// Place of the derivation itself.
    pub(super) target: (usize, usize),
    /// Characters of a name that fit into a node.
    name_chars: usize,
}

/// A derivation and its inputs.
pub(super) struct Graph {
    pub(super) target: PathLabel,
    pub(super) nodes: Vec<Node>,
    pub(super) drawings: [GraphDrawing; 2],
    /// Inputs that are not drawn.
    pub(super) left_out: usize,
    /// Inputs that are served, of all.
    pub(super) served: usize,
    pub(super) total: usize,
}

impl Graph {
    /// Drawings of some of `total` inputs of a derivation. Those that are not served stand first.
    pub(super) fn new(target: PathLabel, mut inputs: Vec<Node>, total: usize) -> Self {
        let served = inputs.iter().filter(|node| node.state == "served").count();
        inputs.sort_by(|a, b| {
            let key = |node: &Node| (node.state == "served", node.label.name().to_owned());
            key(a).cmp(&key(b))
        });
        inputs.truncate(DRAWN_MAX);
        Self {
            drawings: [GraphDrawing::wide(inputs.len()), GraphDrawing::small(inputs.len())],
            left_out: total.saturating_sub(inputs.len()),
            target,
            nodes: inputs,
            served,
            total,
        }
    }
}

impl GraphDrawing {
    /// Inputs in columns, the derivation at their right.
    fn wide(inputs: usize) -> Self {
        let columns = inputs.div_ceil(ROWS_MAX).max(1);
        let rows = inputs.div_ceil(columns).max(1);
        let (height, target_x) = (rows * ROW, columns * COLUMN);
        let target_y = (height - NODE_HEIGHT) / 2;
        let place = |at: usize| (at / rows * COLUMN, at % rows * ROW + (ROW - NODE_HEIGHT) / 2);
        let curve = |at| {
            let (x, y) = place(at);
            let (from_x, from_y) = (x + NODE_WIDTH, y + NODE_HEIGHT / 2);
            let (to_x, to_y) = (target_x, target_y + NODE_HEIGHT / 2);
            let bend = (COLUMN - NODE_WIDTH) / 2;
            // Curves of the columns further away bend in the last gap.
            let straight = to_x - 2 * bend;
            format!(
                "M{from_x} {from_y}H{straight}C{} {from_y} {} {to_y} {to_x} {to_y}",
                straight + bend,
                to_x - bend
            )
        };
        Self {
            class: "wide",
            width: target_x + NODE_WIDTH,
            height,
            node_width: NODE_WIDTH,
            places: (0..inputs).map(place).collect(),
            curves: (0..inputs).map(curve).collect(),
            target: (target_x, target_y),
            name_chars: NODE_WIDTH / CHARACTER - NAME_MARGIN,
        }
    }

    /// Inputs one below the other, the derivation above them.
    fn small(inputs: usize) -> Self {
        let node_width = SMALL_WIDTH - INDENT;
        let place = |at: usize| (INDENT, (at + 1) * ROW);
        let curve = |at| {
            let (x, y) = place(at);
            format!("M{} {NODE_HEIGHT}V{}H{x}", INDENT / 2, y + NODE_HEIGHT / 2)
        };
        Self {
            class: "small",
            width: SMALL_WIDTH,
            height: (inputs + 1) * ROW,
            node_width,
            places: (0..inputs).map(place).collect(),
            curves: (0..inputs).map(curve).collect(),
            target: (0, 0),
            name_chars: node_width / CHARACTER - NAME_MARGIN,
        }
    }

    /// Name of a node, cut where it would not fit.
    pub(super) fn fitting(&self, label: &PathLabel) -> String {
        crate::escape::in_one_line(label.name(), self.name_chars)
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
        assert_eq!(graph.nodes[0].state, "building");
        for drawing in &graph.drawings {
            let mut places = drawing.places.clone();
            places.push(drawing.target);
            places.sort_unstable();
            let (width, height) = (drawing.width, drawing.height);
            assert!(places.iter().all(|(x, y)| x + drawing.node_width <= width && y + NODE_HEIGHT <= height));
            for (at, (x, y)) in places.iter().enumerate() {
                let overlaps = |other: &&(usize, usize)| {
                    other.0 < x + drawing.node_width && other.1.abs_diff(*y) < NODE_HEIGHT
                };
                assert_eq!(places[at + 1..].iter().find(overlaps), None, "{}: {x}, {y}", drawing.class);
            }
        }
        assert!(graph.drawings[0].places.iter().all(|(x, _)| x + NODE_WIDTH < graph.drawings[0].target.0));
    }
}
