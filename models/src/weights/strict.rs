//! Strict loading: all that a graph needs, nothing else, every disagreement in one error.

use std::collections::{BTreeMap, HashSet};

use super::{Dtype, TensorSource, Weights};
use crate::{Error, FlatLayout, Graph, Result};

/// At most this many names are listed in an error; the rest is counted.
const LISTED: usize = 40;

/// Reads the weights of `graph` from `source`, where tensor `t` of the graph is called `name_in_file(t)`.
/// `belongs` tells which names of the file the graph should account for; a name it accepts and the graph lacks is an
/// error. `num_batches_tracked` counters of batch normalisations are kept where the file has them.
///
/// # Errors
/// [`Error::Mismatch`] starting with `what` and listing every missing, unknown and misshapen tensor.
pub fn load_strict(
    source: &dyn TensorSource,
    graph: &Graph,
    what: &str,
    name_in_file: impl Fn(&str) -> String,
    belongs: impl Fn(&str) -> bool,
) -> Result<Weights> {
    check_strict(source, graph, what, &name_in_file, &belongs)?;
    let read = |layout: &FlatLayout| -> Result<Vec<f32>> {
        let mut values = vec![0.0; layout.len()];
        for (spec, range) in layout.iter() {
            source.tensor(&name_in_file(&spec.name))?.write_f32(&mut values[range]);
        }
        Ok(values)
    };
    let (params, buffers) = (read(&graph.parameter_layout())?, read(&graph.buffer_layout())?);
    let mut counters = BTreeMap::new();
    for spec in graph.buffers() {
        let Some(norm) = spec.name.strip_suffix(".running_mean") else { continue };
        let counter = name_in_file(&format!("{norm}.num_batches_tracked"));
        if source.info(&counter).is_none() {
            continue;
        }
        let value = source.tensor(&counter)?.data.as_ref().try_into().map(i64::from_le_bytes).unwrap_or(0);
        if value > 0 {
            counters.insert(norm.to_owned(), value);
        }
    }
    Ok(Weights { params, buffers, counters })
}

/// The checks of [`load_strict`] alone: no value is read.
pub(crate) fn check_strict(
    source: &dyn TensorSource,
    graph: &Graph,
    what: &str,
    name_in_file: &dyn Fn(&str) -> String,
    belongs: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    let mut known = HashSet::new();
    for spec in graph.parameters().into_iter().chain(graph.buffers()) {
        let name = name_in_file(&spec.name);
        match source.info(&name) {
            None => missing.push(format!("`{name}` {:?}", spec.shape)),
            Some(info) if info.shape != spec.shape => {
                misshapen.push(format!("`{name}` is {:?}, expected {:?}", info.shape, spec.shape));
            }
            Some(info) if !info.dtype.is_float() => {
                misshapen.push(format!("`{name}` holds {}, expected a floating-point type", info.dtype));
            }
            Some(_) => {}
        }
        if let Some(norm) = name.strip_suffix(".running_mean") {
            let counter = format!("{norm}.num_batches_tracked");
            match source.info(&counter) {
                Some(info) if !info.shape.is_empty() || info.dtype != Dtype::I64 => {
                    misshapen.push(format!("`{counter}` is {} {:?}, expected one I64", info.dtype, info.shape));
                }
                _ => {}
            }
            known.insert(counter);
        }
        known.insert(name);
    }
    let unknown: Vec<String> =
        source.names().into_iter().filter(|n| belongs(n) && !known.contains(*n)).map(|n| format!("`{n}`")).collect();

    let mut lists = Vec::new();
    for (title, names) in [("missing", missing), ("unknown", unknown), ("wrong shape or type", misshapen)] {
        if !names.is_empty() {
            let rest = names.len().saturating_sub(LISTED);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            lists.push(format!("{title} ({}): {}{more}", names.len(), names[..names.len() - rest].join(", ")));
        }
    }
    if lists.is_empty() { Ok(()) } else { Err(Error::Mismatch(format!("{what}: {}", lists.join("; ")))) }
}
