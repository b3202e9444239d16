//! Which tensors of a file are the backbone, and which architecture they are.

use super::EncoderChoice;
use super::SourceKind;
use crate::arch::{self, ArchSpec, Projector, Stem};
use crate::weights::TensorSource;

/// A ResNet found in a file.
#[derive(Debug)]
pub(super) struct Encoder {
    /// What its tensors' names start with, e.g. `module.encoder_q.`; may be empty.
    pub prefix: String,
}

/// Finds the ResNets in a file by their first layers and chooses one.
pub(super) fn find_encoder(
    tensors: &dyn TensorSource,
    choice: EncoderChoice,
    wanted: Option<&str>,
) -> Result<Encoder, String> {
    let mut prefixes: Vec<String> = tensors
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix("conv1.weight"))
        .filter(|prefix| {
            let has = |suffix: &str| tensors.info(&format!("{prefix}{suffix}")).is_some();
            has("bn1.weight") && has("layer1.0.conv1.weight")
        })
        .map(str::to_owned)
        .collect();
    let listed = |prefixes: &[String]| prefixes.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
    if prefixes.is_empty() {
        let names = tensors.names();
        if names.contains(&"res2_0_branch2a_w") || names.contains(&"conv1_w") {
            return Err(
                "has the Caffe2 names of Detectron's first models (`conv1_w`, `res2_0_branch2a_w`). Those networks \
                        read BGR in another range and stride in the 1×1 convolutions, so they are not imported; take \
                        Detectron2's R-50 of torchvision, or a file that MoCo's conversion wrote"
                    .into(),
            );
        }
        let first: Vec<_> = names.iter().take(5).map(|n| format!("`{n}`")).collect();
        return Err(format!(
            "holds no ResNet with torchvision's names (`conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`, …); its \
             {} tensors begin with {}",
            names.len(),
            first.join(", ")
        ));
    }
    if let Some(wanted) = wanted {
        let wanted = wanted.trim_end_matches('.');
        return match prefixes.iter().find(|p| p.trim_end_matches('.') == wanted) {
            Some(prefix) => Ok(Encoder { prefix: prefix.clone() }),
            None => Err(format!("has no ResNet under `{wanted}`; there is one under {}", listed(&prefixes))),
        };
    }
    let (wanted, other) = match choice {
        EncoderChoice::Query => (["encoder_q.", "base_encoder."], ["encoder_k.", "momentum_encoder."]),
        EncoderChoice::Key => (["encoder_k.", "momentum_encoder."], ["encoder_q.", "base_encoder."]),
    };
    let ends = |prefix: &String, ends: [&str; 2]| ends.iter().any(|end| prefix.ends_with(end));
    if let Some(prefix) = prefixes.iter().find(|p| ends(p, wanted)) {
        return Ok(Encoder { prefix: prefix.clone() });
    }
    if prefixes.iter().any(|p| ends(p, other)) {
        let (asked, there) = (wanted[0].trim_end_matches('.'), listed(&prefixes));
        return Err(format!("has no `{asked}`, only {there}; published files often lack one of the two encoders"));
    }
    if choice == EncoderChoice::Key {
        return Err(format!(
            "is no MoCo checkpoint, so it has no key encoder; its network is under {}",
            listed(&prefixes)
        ));
    }
    match prefixes.len() {
        1 => Ok(Encoder { prefix: prefixes.remove(0) }),
        n => Err(format!("holds {n} networks, under {}; say which one by its prefix", listed(&prefixes))),
    }
}

impl Encoder {
    fn shape(&self, tensors: &dyn TensorSource, name: &str) -> Option<Vec<usize>> {
        Some(tensors.info(&format!("{}{name}", self.prefix))?.shape)
    }

    /// Outputs of a single linear layer `fc`, which in a file without a MoCo encoder is a classifier.
    pub(super) fn classes(&self, tensors: &dyn TensorSource) -> Option<usize> {
        match *self.shape(tensors, "fc.weight")? {
            [classes, _] => Some(classes),
            _ => None,
        }
    }

    pub(super) fn has_fc(&self, tensors: &dyn TensorSource) -> bool {
        let start = format!("{}fc.", self.prefix);
        tensors.names().iter().any(|name| name.starts_with(&start))
    }

    /// The projector that the shape of `fc` fits.
    pub(super) fn projector_of_shape(&self, tensors: &dyn TensorSource) -> Projector {
        let features = |shape: &Option<Vec<usize>>| match shape.as_deref() {
            Some(&[out, inputs]) => Some((out, inputs)),
            _ => None,
        };
        if let Some((dim, _)) = features(&self.shape(tensors, "fc.weight")) {
            return Projector::Linear { dim };
        }
        // MoCo v1 and v2 have biases and no normalisation in `fc`; v3 has it the other way round.
        let (hidden, out) = (self.shape(tensors, "fc.0.weight"), self.shape(tensors, "fc.2.weight"));
        match (features(&hidden), features(&out)) {
            (Some((a, _)), Some((dim, b))) if a == b && self.shape(tensors, "fc.2.bias").is_some() => {
                Projector::Mlp { dim }
            }
            _ => Projector::None,
        }
    }

    /// The projector, where the file is one of MoCo v1 or v2.
    pub(super) fn projector(&self, tensors: &dyn TensorSource, kind: SourceKind) -> Projector {
        match kind {
            SourceKind::MocoV1 | SourceKind::MocoV2 | SourceKind::Backbone => self.projector_of_shape(tensors),
            _ => Projector::None,
        }
    }
}

/// Reads the architecture off the tensors: stem and channels from the first convolution, depth from the number of
/// blocks, kind of block and width from their shapes.
pub(super) fn guess_arch(tensors: &dyn TensorSource, encoder: &Encoder) -> Result<ArchSpec, String> {
    let shape = |name: &str| encoder.shape(tensors, name);
    let (base, in_channels, stem) = match shape("conv1.weight").as_deref() {
        Some(&[base, channels, 7, 7]) => (base, channels, Stem::ImageNet),
        Some(&[base, channels, 3, 3]) => (base, channels, Stem::Cifar),
        other => {
            return Err(format!(
                "`{}conv1.weight` is {:?}; expected a 7×7 or 3×3 convolution [channels, inputs, 7, 7]",
                encoder.prefix,
                other.unwrap_or(&[])
            ));
        }
    };
    let blocks: Vec<usize> = (1..=4)
        .map(|stage| (0..).take_while(|b| shape(&format!("layer{stage}.{b}.conv1.weight")).is_some()).count())
        .collect();
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let width = base as f64 / 64.0;
    let candidates = arch::names_with_blocks(&blocks, bottleneck);
    let mut closest: Option<(usize, String)> = None;
    for name in candidates {
        let spec = ArchSpec { stem, in_channels, width, ..ArchSpec::new(name) };
        let Ok(graph) = spec.build() else { continue };
        let differing: Vec<_> = graph
            .parameters()
            .into_iter()
            .filter_map(|p| {
                let got = shape(&p.name)?;
                (got != p.shape).then(|| format!("`{}{}` is {got:?}, there {:?}", encoder.prefix, p.name, p.shape))
            })
            .collect();
        let Some(first) = differing.first() else { return Ok(spec) };
        if closest.as_ref().is_none_or(|(n, _)| differing.len() < *n) {
            closest = Some((
                differing.len(),
                format!("the closest is {name}, where {} tensors differ: {first}", differing.len()),
            ));
        }
    }
    let kind = if bottleneck { "bottleneck" } else { "basic" };
    let closest = closest.map_or_else(String::new, |(_, text)| format!("; {text}"));
    let known: Vec<_> = arch::names().collect();
    Err(format!(
        "is a ResNet with {blocks:?} {kind} blocks and {base} channels after the first layer, which is none of {}{closest}",
        known.join(", ")
    ))
}

/// First parts of a name, by which tensors that are left out are grouped: `module.encoder_k.conv1.weight` →
/// `module.encoder_k`.
pub(super) fn group(name: &str) -> String {
    let mut parts = name.split('.');
    let first = parts.next().unwrap_or(name);
    match (first, parts.next()) {
        ("module", Some(second)) => format!("{first}.{second}"),
        _ => first.to_owned(),
    }
}
