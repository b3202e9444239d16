//! Shapes, ownership and refusals of small graphs.

use super::*;

fn conv(in_channels: usize, out_channels: usize, stride: usize) -> Op {
    Op::Conv2d { in_channels, out_channels, kernel: 3, stride, padding: 1, groups: 1, bias: true }
}

/// Two levels, a top-down path, and one tower over both.
fn pyramid() -> Graph {
    let mut g = Graph::new(3);
    let fine = g.push("fine", conv(3, 4, 1), &[g.input()]);
    let coarse = g.push("coarse", conv(4, 4, 2), &[fine]);
    let up = g.push("up", Op::Resize { interpolation: Interpolation::Nearest }, &[coarse, fine]);
    let both = g.push("both", Op::Concat, &[up, fine]);
    let norm = g.push("norm", Op::GroupNorm { channels: 8, groups: 2, eps: 1e-5 }, &[both]);
    let down = g.push("down", conv(8, 4, 1), &[norm]);
    let first = g.push("tower.fine", conv(4, 2, 1), &[down]);
    let second = g.push_tied("tower.coarse", first, &[coarse]);
    g.add_tap("fine", first);
    g.add_tap("coarse", second);
    g
}

#[test]
fn odd_sides_come_back_and_channels_add_up() {
    let graph = pyramid();
    let shapes = graph.shapes(7, 5).unwrap();
    let of = |name: &str| shapes[graph.nodes().iter().position(|n| n.name == name).unwrap()];
    assert_eq!(of("coarse"), Shape::Map { channels: 4, height: 4, width: 3 });
    assert_eq!(of("both"), Shape::Map { channels: 8, height: 7, width: 5 });
    assert_eq!(of("tower.coarse"), Shape::Map { channels: 2, height: 4, width: 3 });
}

#[test]
fn a_tied_node_owns_nothing_and_keeps_its_owner_alive() {
    let graph = pyramid();
    let names: Vec<String> = graph.parameters().into_iter().map(|p| p.name).filter(|n| n.contains("tower")).collect();
    assert_eq!(names, ["tower.fine.weight", "tower.fine.bias"]);
    let kept = graph.keep_taps(&["coarse"]).unwrap();
    let tied = kept.tap("coarse").unwrap();
    assert_eq!(kept.node(kept.owner(tied)).name, "tower.fine");
}

#[test]
fn maps_that_do_not_fit_are_refused_by_name() {
    let mut graph = pyramid();
    let (fine, coarse) = (NodeId(1), NodeId(2));
    graph.push("wrong", Op::Concat, &[fine, coarse]);
    let error = graph.shapes(7, 5).unwrap_err().to_string();
    assert!(error.contains("`wrong`") && error.contains("7×5 and 4×3"), "{error}");
    let mut graph = Graph::new(3);
    graph.push("norm", Op::GroupNorm { channels: 3, groups: 2, eps: 1e-5 }, &[graph.input()]);
    assert!(graph.shapes(4, 4).unwrap_err().to_string().contains("3 channels make no 2 equal groups"));
}
