//! Nodes, initialisers, inputs and outputs of the ONNX graph.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::proto::{
    AttributeProto, AttributeType, DataLocation, DataType, Dimension, DimensionProto, GraphProto, NodeProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::{INPUT, InputSize};
use crate::weights::Dtype;
use crate::{Error, Graph, Node, NodeId, Op, Result, Shape};

/// Side of the image by which shapes are checked when the size is left open; every network of ours accepts it.
const PROBE_SIDE: usize = 224;

pub(super) struct Writer<'a> {
    graph: Graph,
    taps: Vec<&'a str>,
    size: InputSize,
    shapes: Vec<Shape>,
    /// ONNX name of each node's result.
    values: Vec<String>,
    nodes: Vec<NodeProto>,
    initialisers: Vec<TensorProto>,
    /// Names of the initialisers.
    known: HashSet<String>,
    /// The outputs, where they are not the taps.
    answers: Option<Vec<ValueInfoProto>>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(graph: &Graph, taps: &[&'a str], size: InputSize) -> Result<Writer<'a>> {
        if let Some(tap) = taps.iter().enumerate().find_map(|(i, tap)| taps[..i].contains(tap).then_some(tap)) {
            return Err(Error::Arch(format!("the tap `{tap}` is asked for twice")));
        }
        if taps.is_empty() || size.batch == Some(0) {
            return Err(Error::Arch("a model needs at least one tap and one image".into()));
        }
        let graph = graph.keep_taps(taps)?;
        let [height, width] = size.image.unwrap_or([PROBE_SIDE; 2]);
        let shapes = graph.shapes(height, width)?;
        let mut values: Vec<String> = graph.nodes().iter().map(|n| format!("{}/out", n.name)).collect();
        values[graph.input().0] = INPUT.into();
        let mut taken = HashMap::new();
        for tap in taps {
            let node = graph.tap(tap)?;
            // Two taps of one node: the second becomes a copy, written in `finish`.
            if node != graph.input() && taken.insert(node, tap).is_none() {
                values[node.0] = (*tap).into();
            }
        }
        Ok(Writer {
            graph,
            taps: taps.to_vec(),
            size,
            shapes,
            values,
            nodes: Vec::new(),
            initialisers: Vec::new(),
            known: HashSet::new(),
            answers: None,
        })
    }

    /// The part of the network that the taps need.
    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Writes all nodes; `tensor` makes the initialiser of a name and shape.
    pub(super) fn write(&mut self, tensor: impl Fn(&str, &[usize]) -> Result<TensorProto>) -> Result<()> {
        for (index, node) in self.graph.nodes().to_vec().iter().enumerate() {
            let inputs = node.inputs.iter().map(|i| self.value(i.0)).collect();
            self.write_node(node, inputs, self.value(index), &tensor)?;
        }
        Ok(())
    }

    /// ONNX name of a node's result; that of the tap, if it has one.
    pub(super) fn value(&self, node: usize) -> String {
        self.values[node].clone()
    }

    /// The outputs.
    pub(super) fn taps(&self) -> &[&'a str] {
        &self.taps
    }

    /// Writes one node that reads `inputs` and makes `output`, in f32.
    pub(super) fn write_node(
        &mut self,
        node: &Node,
        mut inputs: Vec<String>,
        output: String,
        tensor: &impl Fn(&str, &[usize]) -> Result<TensorProto>,
    ) -> Result<()> {
        let owner = node.tied.map_or(&node.name, |owner| &self.graph.node(owner).name).clone();
        let mut weight = |writer: &mut Self, suffix: &str, shape: &[usize]| -> Result<()> {
            let name = format!("{owner}.{suffix}");
            inputs.push(match writer.initialised(&name) {
                Some(known) => known,
                None => writer.initialise(tensor(&name, shape)?),
            });
            Ok(())
        };
        let (op_type, attributes) = match node.op {
            Op::Input { .. } => return Ok(()),
            Op::Conv2d { in_channels, out_channels, kernel, stride, padding, groups, bias } => {
                weight(self, "weight", &[out_channels, in_channels / groups, kernel, kernel])?;
                if bias {
                    weight(self, "bias", &[out_channels])?;
                }
                let mut attributes = window(kernel, stride, padding);
                attributes.push(ints("dilations", &[1, 1]));
                attributes.push(int("group", groups));
                ("Conv", attributes)
            }
            Op::BatchNorm { channels, eps, momentum } => {
                for suffix in ["weight", "bias", "running_mean", "running_var"] {
                    weight(self, suffix, &[channels])?;
                }
                // ONNX weighs the old statistics, PyTorch the new ones.
                ("BatchNormalization", vec![float("epsilon", eps), float("momentum", 1.0 - momentum)])
            }
            Op::Relu => ("Relu", vec![]),
            Op::Add => ("Add", vec![]),
            Op::MaxPool { kernel, stride, padding } => ("MaxPool", window(kernel, stride, padding)),
            Op::GlobalAvgPool => {
                let pooled = format!("{}/pool", node.name);
                self.push("GlobalAveragePool", &pooled, inputs, pooled.clone(), vec![]);
                inputs = vec![pooled];
                ("Flatten", vec![int("axis", 1)])
            }
            Op::Linear { in_features, out_features, bias } => {
                weight(self, "weight", &[out_features, in_features])?;
                if bias {
                    weight(self, "bias", &[out_features])?;
                }
                ("Gemm", vec![int("transB", 1)])
            }
            Op::GroupNorm { channels, groups, eps } => {
                weight(self, "weight", &[channels])?;
                weight(self, "bias", &[channels])?;
                self.group_norm(&node.name, inputs, output, groups, eps);
                return Ok(());
            }
            Op::Resize { interpolation } => {
                self.resize(node, inputs, output, interpolation);
                return Ok(());
            }
            Op::Concat => ("Concat", vec![int("axis", 1)]),
        };
        self.push(op_type, &node.name, inputs, output, attributes);
        Ok(())
    }

    /// Adds an initialiser; gives the name of its f32 value, which is that of a cast if it holds another type.
    fn initialise(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone().expect("initialisers are made with a name");
        let is_f32 = tensor.data_type == Some(DataType::Float as i32);
        self.add(tensor);
        if is_f32 {
            return name;
        }
        let cast = widened(&name);
        self.push("Cast", &cast, vec![name], cast.clone(), vec![int("to", DataType::Float as usize)]);
        cast
    }

    /// Name of the f32 value of an initialiser that another node brought.
    fn initialised(&self, name: &str) -> Option<String> {
        let tensor =
            self.known.contains(name).then(|| self.initialisers.iter().find(|t| t.name.as_deref() == Some(name)));
        let is_f32 = tensor.flatten()?.data_type == Some(DataType::Float as i32);
        Some(if is_f32 { name.to_owned() } else { widened(name) })
    }

    /// Adds an initialiser as it is.
    pub(super) fn add(&mut self, tensor: TensorProto) {
        self.known.extend(tensor.name.clone());
        self.initialisers.push(tensor);
    }

    /// A constant of the model, written once; gives its name.
    pub(super) fn constant<T: bytemuck::NoUninit>(
        &mut self,
        name: &str,
        shape: &[usize],
        data_type: DataType,
        values: &[T],
    ) -> String {
        if !self.known.contains(name) {
            let raw_data = Some(bytemuck::cast_slice(values).to_vec());
            self.add(TensorProto { raw_data, ..described(name, shape, data_type) });
        }
        name.to_owned()
    }

    /// A constant list of numbers, called by what it holds.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        self.constant(&format!("const/[{}]", words.join(",")), &[values.len()], DataType::Int64, values)
    }

    /// Adds a node whose result is called as itself.
    pub(super) fn step(&mut self, op: &str, name: &str, input: Vec<String>, attribute: Vec<AttributeProto>) -> String {
        self.push(op, name, input, name.to_owned(), attribute);
        name.to_owned()
    }

    /// Makes these the outputs, instead of the taps.
    pub(super) fn answer(&mut self, outputs: Vec<ValueInfoProto>) {
        self.answers = Some(outputs);
    }

    /// Sizes of the model's input that are fixed.
    pub(super) fn size(&self) -> InputSize {
        self.size
    }

    /// Shape of a node's result: at the fixed size, else at the size by which shapes are checked.
    pub(super) fn shape(&self, node: NodeId) -> Shape {
        self.shapes[node.0]
    }

    /// The dimension of the batch.
    pub(super) fn batch(&self) -> Dimension {
        self.size.batch.map_or(Dimension::Param("batch".into()), |n| Dimension::Value(n as i64))
    }

    /// Height and width of the image.
    pub(super) fn image_size(&self) -> [Dimension; 2] {
        match self.size.image {
            Some(size) => size.map(|n| Dimension::Value(n as i64)),
            None => ["height", "width"].map(|name| Dimension::Param(name.into())),
        }
    }

    /// Adds a node with one result.
    pub(super) fn push(
        &mut self,
        op: &str,
        name: &str,
        input: Vec<String>,
        output: String,
        attribute: Vec<AttributeProto>,
    ) {
        let (name, op_type) = (Some(name.into()), Some(op.into()));
        self.nodes.push(NodeProto { input, output: vec![output], name, op_type, attribute });
    }

    pub(super) fn finish(mut self) -> Result<GraphProto> {
        let mut outputs = Vec::new();
        for tap in self.taps.clone() {
            let NodeId(node) = self.graph.tap(tap)?;
            if self.values[node] != tap {
                self.push("Identity", tap, vec![self.values[node].clone()], tap.into(), vec![]);
            }
            outputs.push(value_info(tap, DataType::Float, self.dimensions(tap, self.shapes[node])));
        }
        let outputs = self.answers.take().unwrap_or(outputs);
        let Shape::Map { channels, height, width } = self.shapes[0] else {
            return Err(Error::Arch("the input is not an image".into()));
        };
        let input = value_info(INPUT, DataType::Float, self.dimensions("", Shape::Map { channels, height, width }));
        Ok(GraphProto {
            node: self.nodes,
            name: Some("moco".into()),
            initializer: self.initialisers,
            input: vec![input],
            output: outputs,
        })
    }

    /// Dimensions of a value, open ones by name; those of the input (`tap` empty) are `height` and `width`.
    fn dimensions(&self, tap: &str, shape: Shape) -> Vec<Dimension> {
        let fixed = |n: usize| Dimension::Value(n as i64);
        let open =
            |what: &str| Dimension::Param(if tap.is_empty() { what.to_owned() } else { format!("{tap}_{what}") });
        let batch = self.batch();
        match shape {
            Shape::Vector(features) => vec![batch, fixed(features)],
            Shape::Map { channels, height, width } if self.size.image.is_some() => {
                vec![batch, fixed(channels), fixed(height), fixed(width)]
            }
            Shape::Map { channels, .. } => vec![batch, fixed(channels), open("height"), open("width")],
        }
    }
}

pub(super) fn inline_tensor(name: &str, shape: &[usize], values: &[f32]) -> TensorProto {
    let raw_data = Some(bytemuck::cast_slice(values).to_vec());
    TensorProto { raw_data, ..described(name, shape, DataType::Float) }
}

/// A tensor whose values are the bytes `span` of the file that the runtime knows as `location`.
pub(super) fn external_tensor(
    name: &str,
    shape: &[usize],
    dtype: Dtype,
    location: &str,
    span: Range<usize>,
) -> Result<TensorProto> {
    let data_type = match dtype {
        Dtype::F32 => DataType::Float,
        Dtype::F16 => DataType::Float16,
        Dtype::BF16 => DataType::Bfloat16,
        Dtype::F64 => DataType::Double,
        other => return Err(Error::Mismatch(format!("tensor `{name}` holds {other}, expected a floating-point type"))),
    };
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    Ok(TensorProto {
        external_data: vec![
            entry("location", location.into()),
            entry("offset", span.start.to_string()),
            entry("length", span.len().to_string()),
        ],
        data_location: Some(DataLocation::External as i32),
        ..described(name, shape, data_type)
    })
}

pub(super) fn described(name: &str, shape: &[usize], data_type: DataType) -> TensorProto {
    let dims = shape.iter().map(|d| *d as i64).collect();
    TensorProto { dims, data_type: Some(data_type as i32), name: Some(name.into()), ..Default::default() }
}

/// Name of the f32 value of an initialiser of another type.
fn widened(name: &str) -> String {
    format!("{name}/f32")
}

pub(super) fn value_info(name: &str, data_type: DataType, dimensions: Vec<Dimension>) -> ValueInfoProto {
    let dim = dimensions.into_iter().map(|d| DimensionProto { value: Some(d) }).collect();
    let tensor = TensorTypeProto { elem_type: Some(data_type as i32), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

pub(super) fn window(kernel: usize, stride: usize, padding: usize) -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[padding; 4])]
}

pub(super) fn int(name: &str, value: usize) -> AttributeProto {
    attribute(name, AttributeType::Int, AttributeProto { i: Some(value as i64), ..Default::default() })
}

pub(super) fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|v| *v as i64).collect();
    attribute(name, AttributeType::Ints, AttributeProto { ints, ..Default::default() })
}

pub(super) fn text(name: &str, value: &str) -> AttributeProto {
    let s = Some(value.as_bytes().to_vec());
    attribute(name, AttributeType::String, AttributeProto { s, ..Default::default() })
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    attribute(name, AttributeType::Float, AttributeProto { f: Some(value), ..Default::default() })
}

fn attribute(name: &str, kind: AttributeType, value: AttributeProto) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind as i32), ..value }
}
