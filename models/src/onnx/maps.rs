//! The operators of decoders in opset 17: group normalisation, resizing.

use super::proto::DataType;
use super::writer::{Writer, float, int, text};
use crate::{Interpolation, Node, Shape};

impl Writer<'_> {
    /// Group normalisation of `inputs` = x, weight [C], bias [C]. Opset 17 has no operator for it: the groups become the
    /// channels of an instance normalisation, scale and shift follow.
    pub(super) fn group_norm(&mut self, name: &str, inputs: Vec<String>, output: String, groups: usize, eps: f32) {
        let [x, weight, bias] = <[String; 3]>::try_from(inputs).expect("a normalisation has three inputs");
        let part = |what: &str| format!("{name}/{what}");
        let grouped = self.integers(&[0, groups as i64, -1]);
        let grouped = self.step("Reshape", &part("groups"), vec![x.clone(), grouped], vec![]);
        let ones = self.constant(&format!("const/ones{groups}"), &[groups], DataType::Float, &vec![1_f32; groups]);
        let zeros = self.constant(&format!("const/zeros{groups}"), &[groups], DataType::Float, &vec![0_f32; groups]);
        let inputs = vec![grouped, ones, zeros];
        let normal = self.step("InstanceNormalization", &part("normal"), inputs, vec![float("epsilon", eps)]);
        let shape = self.step("Shape", &part("shape"), vec![x], vec![]);
        let normal = self.step("Reshape", &part("map"), vec![normal, shape], vec![]);
        let per_channel = self.integers(&[-1, 1, 1]);
        let scale = self.step("Reshape", &part("scale"), vec![weight, per_channel.clone()], vec![]);
        let shift = self.step("Reshape", &part("shift"), vec![bias, per_channel], vec![]);
        let scaled = self.step("Mul", &part("scaled"), vec![normal, scale], vec![]);
        self.push("Add", name, vec![scaled, shift], output, vec![]);
    }

    /// `inputs` = x, like. Where batch and image are fixed the size is a constant, else it is taken from both maps.
    pub(super) fn resize(&mut self, node: &Node, inputs: Vec<String>, output: String, interpolation: Interpolation) {
        let [x, like] = <[String; 2]>::try_from(inputs).expect("a resize has two inputs");
        let name = &node.name;
        let channels = self.shape(node.inputs[0]).channels();
        let sizes = match (self.size().batch, self.size().image, self.shape(node.inputs[1])) {
            (Some(batch), Some(_), Shape::Map { height, width, .. }) => {
                self.integers(&[batch, channels, height, width].map(|n| n as i64))
            }
            _ => {
                let (start, end) = (int("start", 2), int("end", 4));
                let size = self.step("Shape", &format!("{name}/size"), vec![like], vec![start, end]);
                let kept =
                    self.step("Shape", &format!("{name}/kept"), vec![x.clone()], vec![int("start", 0), int("end", 2)]);
                self.step("Concat", &format!("{name}/sizes"), vec![kept, size], vec![int("axis", 0)])
            }
        };
        // As torch.nn.functional.interpolate reads without `align_corners`.
        let attributes = match interpolation {
            Interpolation::Nearest => vec![
                text("mode", "nearest"),
                text("coordinate_transformation_mode", "asymmetric"),
                text("nearest_mode", "floor"),
            ],
            Interpolation::Bilinear => {
                vec![text("mode", "linear"), text("coordinate_transformation_mode", "half_pixel")]
            }
        };
        self.push("Resize", name, vec![x, String::new(), String::new(), sizes], output, attributes);
    }
}
