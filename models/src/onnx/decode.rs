//! What makes boxes of a detector's maps: decoding and, on request, non-maximum suppression.

use super::model::{ModelExport, Suppress, fixed};
use super::proto::{DataType, Dimension, ValueInfoProto};
use super::writer::{Writer, int, ints, value_info};
use crate::heads::{HeadOutput, HeadSpec, Part};

/// Distances beyond stride · e¹⁰ pixels are cut, so that a bad score never makes an infinity.
const LARGEST_EXPONENT: f32 = 10.0;

/// Decodes the boxes of every level (arXiv:1904.01355): a pixel (i, j) of a level of stride s stands at
/// ((j + ½)·s, (i + ½)·s); its box reaches s·exp(value) pixels left, up, right and down; its score is the root of the
/// class's and the centre's probabilities multiplied.
pub(super) fn boxes(
    writer: &mut Writer<'_>,
    head: &HeadSpec,
    outputs: &[HeadOutput],
    options: &ModelExport,
) -> Vec<ValueInfoProto> {
    let (mut edges, mut scores, mut places) = (Vec::new(), Vec::new(), Some(0));
    for level in outputs.chunks_exact(3) {
        let [class, distances, centre] = [Part::Class, Part::Box, Part::Centre].map(|part| {
            let output = level.iter().find(|o| o.part == part);
            output.expect("each level has these three").tap.clone()
        });
        let name = distances.replace("box_", "decode/");
        edges.push(decode(writer, &name, distances, level[0].stride));
        scores.push(score(writer, &name, class.clone(), centre, head.classes()));
        places = places.filter(|_| options.size.image.is_some()).map(|sum| {
            let node = writer.graph().tap(&class).expect("it was written");
            sum + writer.shape(node).numel() / head.classes()
        });
    }
    let edges = writer.step("Concat", "decode/edges", edges, vec![int("axis", 2)]);
    let scores = writer.step("Concat", "decode/scores", scores, vec![int("axis", 2)]);
    let size = writer.step("Shape", "decode/image", vec![super::INPUT.into()], vec![int("start", 2), int("end", 4)]);
    let order = writer.integers(&[1, 0, 1, 0]);
    let limits = writer.step("Gather", "decode/sides", vec![size, order], vec![int("axis", 0)]);
    let limits = writer.step("Cast", "decode/sides/f32", vec![limits], vec![int("to", DataType::Float as usize)]);
    let column = writer.integers(&[1, 4, 1]);
    let limits = writer.step("Reshape", "decode/limits", vec![limits, column], vec![]);
    let zero = writer.constant("const/0", &[], DataType::Float, &[0_f32]);
    let edges = writer.step("Max", "decode/from0", vec![edges, zero], vec![]);
    let edges = writer.step("Min", "decode/inside", vec![edges, limits], vec![]);
    let transposed = [ints("perm", &[0, 2, 1])];
    match options.suppress {
        None => {
            writer.step("Transpose", "boxes", vec![edges], transposed.to_vec());
            writer.step("Transpose", "scores", vec![scores], transposed.to_vec());
            let places = || places.map_or(Dimension::Param("places".into()), fixed);
            let output =
                |name: &str, of: usize| value_info(name, DataType::Float, vec![writer.batch(), places(), fixed(of)]);
            vec![output("boxes", 4), output("scores", head.classes())]
        }
        Some(suppress) => {
            let all = writer.step("Transpose", "decode/boxes", vec![edges], transposed.to_vec());
            thin_out(writer, all, scores, suppress)
        }
    }
}

/// Edges [N, 4, h·w] of one level's boxes.
fn decode(writer: &mut Writer<'_>, name: &str, distances: String, stride: usize) -> String {
    let part = |what: &str| format!("{name}/{what}");
    let stride = stride as f32;
    let column = |writer: &mut Writer<'_>, what: &str, values: [f32; 4]| {
        writer.constant(&part(what), &[1, 4, 1, 1], DataType::Float, &values)
    };
    let largest = writer.constant("const/largest", &[], DataType::Float, &[LARGEST_EXPONENT]);
    let bounded = writer.step("Min", &part("bounded"), vec![distances.clone(), largest], vec![]);
    let grown = writer.step("Exp", &part("exp"), vec![bounded], vec![]);
    let signs = column(writer, "signs", [-stride, -stride, stride, stride]);
    let reach = writer.step("Mul", &part("reach"), vec![grown, signs], vec![]);
    let half = writer.constant("const/half", &[], DataType::Float, &[0.5_f32]);
    let mut place = Vec::new();
    for (axis, side, selected) in [(3, "x", [stride, 0.0, stride, 0.0]), (2, "y", [0.0, stride, 0.0, stride])] {
        let attributes = vec![int("start", axis), int("end", axis + 1)];
        let length = writer.step("Shape", &part(&format!("{side}/length")), vec![distances.clone()], attributes);
        let length = writer.step("Squeeze", &part(&format!("{side}/side")), vec![length], vec![]);
        let (from, by) = (
            writer.constant("const/from", &[], DataType::Int64, &[0_i64]),
            writer.constant("const/by", &[], DataType::Int64, &[1_i64]),
        );
        let index = writer.step("Range", &part(&format!("{side}/index")), vec![from, length, by], vec![]);
        let to_f32 = vec![int("to", DataType::Float as usize)];
        let index = writer.step("Cast", &part(&format!("{side}/f32")), vec![index], to_f32);
        let mut centres = writer.step("Add", &part(&format!("{side}/centres")), vec![index, half.clone()], vec![]);
        if side == "y" {
            let rows = writer.integers(&[-1, 1]);
            centres = writer.step("Reshape", &part("y/rows"), vec![centres, rows], vec![]);
        }
        let selected = column(writer, &format!("{side}/selected"), selected);
        place.push(writer.step("Mul", &part(side), vec![centres, selected], vec![]));
    }
    let place = writer.step("Add", &part("place"), place, vec![]);
    let edges = writer.step("Add", &part("edges"), vec![reach, place], vec![]);
    let flat = writer.integers(&[0, 4, -1]);
    writer.step("Reshape", &part("flat"), vec![edges, flat], vec![])
}

/// Scores [N, classes, h·w] of one level.
fn score(writer: &mut Writer<'_>, name: &str, class: String, centre: String, classes: usize) -> String {
    let part = |what: &str| format!("{name}/{what}");
    let class = writer.step("Sigmoid", &part("class"), vec![class], vec![]);
    let centre = writer.step("Sigmoid", &part("centre"), vec![centre], vec![]);
    let both = writer.step("Mul", &part("both"), vec![class, centre], vec![]);
    let score = writer.step("Sqrt", &part("score"), vec![both], vec![]);
    let flat = writer.integers(&[0, classes as i64, -1]);
    writer.step("Reshape", &part("scores"), vec![score, flat], vec![])
}

/// Non-maximum suppression of `all` [N, L, 4] with `scores` [N, classes, L].
fn thin_out(writer: &mut Writer<'_>, all: String, scores: String, suppress: Suppress) -> Vec<ValueInfoProto> {
    let Suppress { iou, score, per_class } = suppress;
    // A runtime reads corners in any order: x0, y0, x1, y1 is as good as y0, x0, y1, x1.
    let inputs = vec![
        all.clone(),
        scores.clone(),
        writer.integers(&[per_class as i64]),
        writer.constant("suppress/iou", &[1], DataType::Float, &[iou]),
        writer.constant("suppress/score", &[1], DataType::Float, &[score]),
    ];
    let kept = writer.step("NonMaxSuppression", "suppress/kept", inputs, vec![]);
    let columns = |writer: &mut Writer<'_>, name: &str, which: String| {
        writer.step("Gather", name, vec![kept.clone(), which], vec![int("axis", 1)])
    };
    let which = writer.integers(&[0, 2]);
    let place = columns(writer, "suppress/place", which);
    writer.step("GatherND", "boxes", vec![all, place], vec![]);
    writer.step("GatherND", "scores", vec![scores, kept.clone()], vec![]);
    for (name, column) in [("labels", 1_i64), ("image_index", 0)] {
        let which = writer.constant(&format!("suppress/column{column}"), &[], DataType::Int64, &[column]);
        columns(writer, name, which);
    }
    let found = || Dimension::Param("found".into());
    vec![
        value_info("boxes", DataType::Float, vec![found(), fixed(4)]),
        value_info("scores", DataType::Float, vec![found()]),
        value_info("labels", DataType::Int64, vec![found()]),
        value_info("image_index", DataType::Int64, vec![found()]),
    ]
}
