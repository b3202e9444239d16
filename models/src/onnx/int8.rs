//! The graph in 8 bits, as QuantizeLinear and DequantizeLinear around the f32 operators (QDQ): a runtime that knows the
//! pattern computes in integers, any other gets the same values in f32.
//!
//! Activations are u8 with one scale a tensor, weights i8 with one scale an output channel and no offset
//! (arXiv:2004.09602). Batch normalisation is folded into weights and bias. What leaves a step is rounded once; max
//! pooling works on the rounded values; the mean over the last map and all behind it is f32.

use super::fuse::{Role, Step, ranged, roles};
use super::proto::{DataType, TensorProto};
use super::writer::{Writer, described, int, ints, window};
use crate::calibration::Calibration;
use crate::{Error, Graph, Node, NodeId, Op, Result, Weights};

/// Bits of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightBits {
    /// −127 … 127: for processors that add products of u8 and i8 in 32 bits (AVX-512 VNNI, AVX-VNNI, ARM).
    #[default]
    Eight,
    /// −63 … 63: older x86 processors add pairs of products in 16 bits, where 8-bit weights overflow.
    Seven,
}

impl WeightBits {
    /// The number of bits.
    pub fn bits(self) -> u32 {
        match self {
            WeightBits::Eight => 8,
            WeightBits::Seven => 7,
        }
    }

    fn largest(self) -> f64 {
        f64::from((1u32 << (self.bits() - 1)) - 1)
    }
}

/// How a network is brought to 8 bits.
#[derive(Clone, Debug)]
pub struct Int8<'a> {
    /// Ranges of the activations.
    pub calibration: &'a Calibration,
    /// Bits of the weights.
    pub weight_bits: WeightBits,
}

/// Biases beyond this leave no room for the sum of products in 32 bits.
const LARGEST_BIAS: f64 = (1u32 << 30) as f64;

/// A result in 8 bits: value = scale · (u8 − zero).
#[derive(Clone)]
struct Rounded {
    /// ONNX names of the u8 values, the scale and the zero point.
    names: [String; 3],
    scale: f32,
}

/// Writes all nodes of the writer's graph in 8 bits; `graph` and `weights` are the whole network.
pub(super) fn write(writer: &mut Writer<'_>, graph: &Graph, weights: &Weights, int8: &Int8<'_>) -> Result<()> {
    let kept = writer.graph().clone();
    let roles = roles(&kept)?;
    let mut rounded: Vec<Option<Rounded>> = vec![None; kept.nodes().len()];
    for (index, node) in kept.nodes().iter().enumerate() {
        match roles[index] {
            Role::Inside => continue,
            Role::Image => {
                let source = writer.value(index);
                rounded[index] = Some(round(writer, &node.name, source, int8)?);
            }
            Role::Pooling => {
                let source = rounded[node.inputs[0].0].clone().expect("roles() lets pooling read 8-bit values only");
                let input = widen(writer, &source, &node.name, 0);
                let output = format!("{}/max", node.name);
                writer.write_node(node, vec![input], output.clone(), &no_tensor)?;
                let names = [format!("{}/q", node.name), source.names[1].clone(), source.names[2].clone()];
                let inputs = vec![output, names[1].clone(), names[2].clone()];
                writer.push("QuantizeLinear", &names[0], inputs, names[0].clone(), vec![]);
                rounded[index] = Some(Rounded { names, scale: source.scale });
            }
            Role::End(step) => {
                let result = write_step(writer, &kept, graph, weights, step, &rounded, int8)?;
                rounded[index] = Some(round(writer, &node.name, result, int8)?);
            }
            Role::Float => {
                let mut inputs = Vec::new();
                for (i, input) in node.inputs.iter().enumerate() {
                    inputs.push(match &rounded[input.0] {
                        Some(source) => widen(writer, source, &node.name, i),
                        None => writer.value(input.0),
                    });
                }
                let output = writer.value(index);
                let tensor = |name: &str, shape: &[usize]| {
                    let values = weights.param(graph, name).ok_or_else(|| lacking(name))?;
                    Ok(super::writer::inline_tensor(name, shape, values))
                };
                writer.write_node(node, inputs, output, &tensor)?;
            }
        }
    }
    for tap in writer.taps().to_vec() {
        let NodeId(index) = kept.tap(tap)?;
        // Another tap of the same node is a copy of it.
        if let Some(source) = rounded[index].as_ref().filter(|_| writer.value(index) == tap) {
            writer.push("DequantizeLinear", tap, source.names.to_vec(), tap.into(), vec![]);
        }
    }
    Ok(())
}

/// Writes a convolution or sum and the ReLU behind it; gives the name of the f32 result.
fn write_step(
    writer: &mut Writer<'_>,
    kept: &Graph,
    graph: &Graph,
    weights: &Weights,
    step: Step,
    rounded: &[Option<Rounded>],
    int8: &Int8<'_>,
) -> Result<String> {
    let head = kept.node(step.head);
    let mut inputs = Vec::new();
    for (i, input) in head.inputs.iter().enumerate() {
        let source = rounded[input.0].as_ref().expect("roles() lets a step read 8-bit values only");
        inputs.push(widen(writer, source, &head.name, i));
    }
    let mut result = format!("{}/sum", head.name);
    if let Op::Conv2d { kernel, stride, padding, groups, .. } = head.op {
        let input = rounded[head.inputs[0].0].as_ref().expect("checked above");
        let folded = fold(graph, weights, head, step.norm.map(|n| kept.node(n)))?;
        inputs.extend(write_weights(writer, &head.name, head.op, &folded, input.scale, int8.weight_bits));
        let mut attributes = window(kernel, stride, padding);
        attributes.push(ints("dilations", &[1, 1]));
        attributes.push(int("group", groups));
        writer.push("Conv", &head.name, inputs, result.clone(), attributes);
    } else {
        writer.push("Add", &head.name, inputs, result.clone(), vec![]);
    }
    if step.relu {
        let output = format!("{}/relu", head.name);
        writer.push("Relu", &output, vec![result], output.clone(), vec![]);
        result = output;
    }
    Ok(result)
}

/// A convolution's weights [out, …] and bias [out] with the normalisation behind it folded in, in f64.
struct Folded {
    weight: Vec<f64>,
    bias: Vec<f64>,
}

/// BN(W x + b) = γ/√(v + ε) · W x + (β + (b − μ) · γ/√(v + ε)).
fn fold(graph: &Graph, weights: &Weights, conv: &Node, norm: Option<&Node>) -> Result<Folded> {
    let Op::Conv2d { out_channels, bias: has_bias, .. } = conv.op else { unreachable!("called for convolutions only") };
    let conv = &conv.name;
    let read = |name: String| -> Result<Vec<f64>> {
        let values = weights.param(graph, &name).ok_or_else(|| lacking(&name))?;
        Ok(values.iter().map(|v| f64::from(*v)).collect())
    };
    let mut weight = read(format!("{conv}.weight"))?;
    let bias = if has_bias { read(format!("{conv}.bias"))? } else { vec![0.0; out_channels] };
    let Some(norm) = norm else {
        return Ok(Folded { weight, bias });
    };
    let Op::BatchNorm { channels, eps, .. } = norm.op else {
        return Err(Error::Graph { node: norm.name.clone(), reason: "is not a batch normalisation".into() });
    };
    let parts = ["weight", "bias", "running_mean", "running_var"].map(|part| read(format!("{}.{part}", norm.name)));
    let [gamma, beta, mean, variance] = parts;
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let per_channel = weight.len() / channels;
    let mut folded_bias = Vec::with_capacity(channels);
    for (channel, weight) in weight.chunks_exact_mut(per_channel).enumerate() {
        let scale = gamma[channel] / (variance[channel] + f64::from(eps)).sqrt();
        weight.iter_mut().for_each(|w| *w *= scale);
        folded_bias.push(beta[channel] + (bias[channel] - mean[channel]) * scale);
    }
    Ok(Folded { weight, bias: folded_bias })
}

/// Writes i8 weights and an i32 bias; gives the names of their f32 values.
fn write_weights(
    writer: &mut Writer<'_>,
    conv: &str,
    op: Op,
    folded: &Folded,
    input_scale: f32,
    bits: WeightBits,
) -> [String; 2] {
    let Op::Conv2d { in_channels, out_channels, kernel, groups, .. } = op else {
        unreachable!("called for convolutions only")
    };
    let shape = [out_channels, in_channels / groups, kernel, kernel];
    let mut scales = Vec::with_capacity(out_channels);
    let mut weight = Vec::with_capacity(folded.weight.len());
    let (mut bias, mut bias_scales) = (Vec::with_capacity(out_channels), Vec::with_capacity(out_channels));
    for (channel, own_bias) in folded.weight.chunks_exact(folded.weight.len() / out_channels).zip(&folded.bias) {
        let largest = channel.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
        // A channel of almost no weight must not make its bias overflow.
        let for_bias = own_bias.abs() / (f64::from(input_scale) * LARGEST_BIAS);
        let scale = (largest / bits.largest()).max(for_bias).max(f64::from(f32::MIN_POSITIVE)) as f32;
        let limit = bits.largest();
        weight.extend(channel.iter().map(|w| (w / f64::from(scale)).round_ties_even().clamp(-limit, limit) as i8));
        // The product that a runtime takes for granted, in the type in which it is stored.
        let bias_scale = (input_scale * scale).max(f32::MIN_POSITIVE);
        bias.push((own_bias / f64::from(bias_scale)).round_ties_even().clamp(-LARGEST_BIAS, LARGEST_BIAS) as i32);
        scales.push(scale);
        bias_scales.push(bias_scale);
    }
    let zeros = vec![0_i32; out_channels];
    let channels = [out_channels];
    let name = |part: &str| format!("{conv}.{part}");
    let weight_parts = [
        raw(&name("weight"), &shape, DataType::Int8, &weight),
        raw(&name("weight/scale"), &channels, DataType::Float, &scales),
        raw(&name("weight/zero"), &channels, DataType::Int8, &vec![0_i8; out_channels]),
    ];
    let bias_parts = [
        raw(&name("bias"), &channels, DataType::Int32, &bias),
        raw(&name("bias/scale"), &channels, DataType::Float, &bias_scales),
        raw(&name("bias/zero"), &channels, DataType::Int32, &zeros),
    ];
    [("weight", weight_parts), ("bias", bias_parts)].map(|(part, tensors)| {
        let inputs = tensors.map(|t| initialise(writer, t)).to_vec();
        let output = name(&format!("{part}/f32"));
        writer.push("DequantizeLinear", &output, inputs, output.clone(), vec![int("axis", 0)]);
        output
    })
}

/// Rounds the f32 value `source` to 8 bits over the range of `node`.
fn round(writer: &mut Writer<'_>, node: &str, source: String, int8: &Int8<'_>) -> Result<Rounded> {
    let lacks = || Error::Mismatch(format!("the calibration has no range for `{node}`; calibrate again"));
    let (scale, zero) = grid(*int8.calibration.ranges.get(node).ok_or_else(lacks)?);
    let names = ["q", "scale", "zero"].map(|part| format!("{node}/{part}"));
    writer.add(raw(&names[1], &[], DataType::Float, &[scale]));
    writer.add(raw(&names[2], &[], DataType::Uint8, &[zero]));
    let inputs = vec![source, names[1].clone(), names[2].clone()];
    writer.push("QuantizeLinear", &names[0], inputs, names[0].clone(), vec![]);
    Ok(Rounded { names, scale })
}

/// The f32 value of 8-bit results for input `i` of `reader`: a node of its own for each reader, because runtimes match
/// the pattern by its only reader.
fn widen(writer: &mut Writer<'_>, source: &Rounded, reader: &str, i: usize) -> String {
    let output = format!("{reader}/in{i}");
    writer.push("DequantizeLinear", &output, source.names.to_vec(), output.clone(), vec![]);
    output
}

/// Scale and zero point of 256 levels over `[low, high]`, low ≤ 0 ≤ high; zero is a level.
pub fn grid([low, high]: [f32; 2]) -> (f32, u8) {
    let scale = ((f64::from(high) - f64::from(low)) / 255.0) as f32;
    if !scale.is_normal() {
        return (1.0, 0); // All values are zero.
    }
    (scale, (f64::from(-low) / f64::from(scale)).round_ties_even().clamp(0.0, 255.0) as u8)
}

/// Names of the nodes whose results need a range.
pub(super) fn ranged_nodes(graph: &Graph) -> Result<Vec<String>> {
    Ok(ranged(graph, &roles(graph)?))
}

fn initialise(writer: &mut Writer<'_>, tensor: TensorProto) -> String {
    let name = tensor.name.clone().expect("initialisers are made with a name");
    writer.add(tensor);
    name
}

fn raw<T: bytemuck::NoUninit>(name: &str, shape: &[usize], data_type: DataType, values: &[T]) -> TensorProto {
    TensorProto { raw_data: Some(bytemuck::cast_slice(values).to_vec()), ..described(name, shape, data_type) }
}

fn no_tensor(name: &str, _: &[usize]) -> Result<TensorProto> {
    Err(lacking(name))
}

fn lacking(name: &str) -> Error {
    Error::Mismatch(format!("the weights have no tensor `{name}`"))
}
