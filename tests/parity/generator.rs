//! Checks our generator of inputs against recorded values.

use std::path::Path;

use moco_tests::generator::{fnv1a, uniform};
use serde_json::Value;

/// Compares every value of the file, exactly.
pub fn check(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let entries: serde_json::Map<String, Value> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    for (call, recorded) in &entries {
        let name = call.split('"').nth(1).ok_or_else(|| format!("`{call}` names nothing in quotes"))?;
        let same = if call.starts_with("fnv1a(") {
            recorded.as_str() == Some(format!("{:#018x}", fnv1a(name)).as_str())
        } else {
            let recorded = recorded.as_array().ok_or_else(|| format!("`{call}` is not a list"))?;
            let recorded: Vec<f64> = recorded.iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect();
            recorded == uniform(name, recorded.len())
        };
        if !same {
            return Err(format!(
                "`{call}` is recorded as {recorded}; here the hash is {:#018x} and the first values are {:?}",
                fnv1a(name),
                uniform(name, 4)
            ));
        }
    }
    Ok(format!("{} calls, exactly", entries.len()))
}
