//! What one node makes of its inputs: its shape, what it owns, what it costs.

use super::{Node, Op, Shape};
use crate::{ParamKind, ParamSpec};

pub(super) fn shape_of(op: Op, inputs: &[Shape], height: usize, width: usize) -> std::result::Result<Shape, String> {
    let map = |i: usize| match inputs.get(i) {
        Some(&Shape::Map { channels, height, width }) => Ok((channels, height, width)),
        other => Err(format!("expected a feature map, got {other:?}")),
    };
    let window = |size: usize, kernel: usize, stride: usize, padding: usize| {
        (size + 2 * padding).checked_sub(kernel).map(|rest| rest / stride + 1).ok_or_else(|| {
            format!(
                "a {kernel}×{kernel} window does not fit an input side of {size} (padding {padding}); use larger images"
            )
        })
    };
    let expect = |what: &str, expected: usize, got: usize| {
        if expected == got { Ok(()) } else { Err(format!("expected {expected} {what}, got {got}")) }
    };
    match op {
        Op::Input { channels } if height > 0 && width > 0 => Ok(Shape::Map { channels, height, width }),
        Op::Input { .. } => Err("the image is empty".into()),
        Op::Conv2d { in_channels, out_channels, kernel, stride, padding, .. } => {
            let (c, h, w) = map(0)?;
            expect("channels", in_channels, c)?;
            let (height, width) = (window(h, kernel, stride, padding)?, window(w, kernel, stride, padding)?);
            Ok(Shape::Map { channels: out_channels, height, width })
        }
        Op::MaxPool { kernel, stride, padding } => {
            let (channels, h, w) = map(0)?;
            let (height, width) = (window(h, kernel, stride, padding)?, window(w, kernel, stride, padding)?);
            Ok(Shape::Map { channels, height, width })
        }
        Op::BatchNorm { channels, .. } => {
            expect("channels", channels, inputs[0].channels())?;
            Ok(inputs[0])
        }
        Op::Relu => Ok(inputs[0]),
        Op::Add if inputs[0] == inputs[1] => Ok(inputs[0]),
        Op::Add => Err(format!("cannot add {:?} and {:?}", inputs[0], inputs[1])),
        Op::GroupNorm { channels, groups, .. } => {
            let (c, _, _) = map(0)?;
            expect("channels", channels, c)?;
            match groups {
                0 => Err("there are no groups".into()),
                _ if !channels.is_multiple_of(groups) => {
                    Err(format!("{channels} channels make no {groups} equal groups"))
                }
                _ => Ok(inputs[0]),
            }
        }
        Op::Resize { .. } => {
            let ((channels, _, _), (_, height, width)) = (map(0)?, map(1)?);
            Ok(Shape::Map { channels, height, width })
        }
        Op::Concat => {
            let (mut channels, height, width) = map(0)?;
            for i in 1..inputs.len() {
                let (more, h, w) = map(i)?;
                if (h, w) != (height, width) {
                    return Err(format!("cannot join maps of {height}×{width} and {h}×{w}"));
                }
                channels += more;
            }
            Ok(Shape::Map { channels, height, width })
        }
        Op::GlobalAvgPool => map(0).map(|(c, _, _)| Shape::Vector(c)),
        Op::Linear { in_features, out_features, .. } => match inputs[0] {
            Shape::Vector(n) => expect("features", in_features, n).map(|()| Shape::Vector(out_features)),
            other => Err(format!("expected a vector, got {other:?}")),
        },
    }
}

/// What the node owns: nothing, if it is tied to another.
pub(super) fn node_parameters(node: &Node) -> Vec<ParamSpec> {
    if node.tied.is_some() {
        return vec![];
    }
    let spec =
        |suffix: &str, shape: Vec<usize>, kind| ParamSpec { name: format!("{}.{suffix}", node.name), shape, kind };
    match node.op {
        Op::Conv2d { in_channels, out_channels, kernel, groups, bias, .. } => {
            let shape = vec![out_channels, in_channels / groups, kernel, kernel];
            let mut specs = vec![spec("weight", shape, ParamKind::ConvWeight)];
            if bias {
                let fan_in = in_channels / groups * kernel * kernel;
                specs.push(spec("bias", vec![out_channels], ParamKind::Bias { fan_in }));
            }
            specs
        }
        Op::Linear { in_features, out_features, bias } => {
            let mut specs = vec![spec("weight", vec![out_features, in_features], ParamKind::LinearWeight)];
            if bias {
                specs.push(spec("bias", vec![out_features], ParamKind::Bias { fan_in: in_features }));
            }
            specs
        }
        Op::BatchNorm { channels, .. } => vec![
            spec("weight", vec![channels], ParamKind::NormWeight),
            spec("bias", vec![channels], ParamKind::NormBias),
            spec("running_mean", vec![channels], ParamKind::RunningMean),
            spec("running_var", vec![channels], ParamKind::RunningVar),
        ],
        Op::GroupNorm { channels, .. } => vec![
            spec("weight", vec![channels], ParamKind::NormWeight),
            spec("bias", vec![channels], ParamKind::NormBias),
        ],
        _ => vec![],
    }
}

pub(super) fn node_macs(op: Op, out: Shape) -> u64 {
    match op {
        Op::Conv2d { in_channels, kernel, groups, .. } => {
            (out.numel() * (in_channels / groups) * kernel * kernel) as u64
        }
        Op::Linear { in_features, .. } => (out.numel() * in_features) as u64,
        _ => 0,
    }
}
