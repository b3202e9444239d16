//! What the processes of a run agree on.

use std::sync::Arc;

use moco_engine::group::Group;
use serde::{Deserialize, Serialize};

use super::RunConfig;
use crate::data::Share;
use crate::recipe::{GroupKind, Recipe};
use crate::{Error, Result};

/// The processes of a run as one of them sees them; one alone where there is no group.
pub(super) struct Processes(Option<Arc<Group>>);

/// What a process tells the others after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// It was asked to stop. Together: one was.
    pub stop: bool,
    /// It is time to save. Together: process 0 thinks so.
    pub save: bool,
    /// Something to know. Together: what all said.
    pub said: Vec<String>,
}

impl Processes {
    pub fn new(group: Option<Arc<Group>>) -> Processes {
        Processes(group)
    }

    pub fn group(&self) -> Option<&Arc<Group>> {
        self.0.as_ref()
    }

    pub fn world(&self) -> usize {
        self.0.as_ref().map_or(1, |group| group.world())
    }

    /// Whether this is the process that writes.
    pub fn is_first(&self) -> bool {
        self.0.as_ref().is_none_or(|group| group.rank() == 0)
    }

    /// Number of the device of this process, from the first on.
    pub fn local_rank(&self) -> usize {
        self.0.as_ref().map_or(0, |group| group.place().local_rank)
    }

    pub fn share(&self) -> Share {
        self.0.as_ref().map_or(Share::WHOLE, |group| Share { rank: group.rank(), world: group.world() })
    }

    /// Gives every process batch statistics of its own where the recipe has the whole batch share them; says so.
    ///
    /// # Errors
    /// [`Error::Recipe`] where a step cannot be divided among the processes.
    pub fn spread(&self, recipe: &mut Recipe) -> Result<Option<String>> {
        let (world, batch, norm) = (self.world(), recipe.optim.batch, &mut recipe.batch_norm);
        if world == 1 {
            return Ok(None);
        }
        let wrong = |key: &str, reason: String| Err(Error::Recipe { key: key.into(), reason });
        if !recipe.optim.drop_last {
            let reason = format!("false, and {world} processes need whole batches; use `--drop-last true`");
            return wrong("optim.drop_last", reason);
        }
        let whole = norm.groups == GroupKind::Whole || norm.count == 1;
        let note = whole.then(|| {
            format!(
                "each of the {world} processes has batch statistics of its own, as one process has with --virtual-ranks {world}"
            )
        });
        if whole {
            (norm.groups, norm.count) = (GroupKind::Ranks, world);
        }
        if norm.groups == GroupKind::Interleaved || !norm.count.is_multiple_of(world) {
            let reason = format!(
                "{} {} of the batch cannot be divided among {world} processes; use `--virtual-ranks` with a multiple of {world}",
                norm.count,
                if norm.groups == GroupKind::Interleaved { "interleaved groups" } else { "groups" }
            );
            return wrong("batch_norm.count", reason);
        }
        if !batch.is_multiple_of(norm.count) {
            let count = norm.count;
            let reason = format!("{batch} images cannot be divided into {count} equal groups on {world} processes");
            return wrong("optim.batch", reason);
        }
        recipe.validate()?;
        Ok(note)
    }

    /// That all were started with the same recipe and found the same number of images.
    ///
    /// # Errors
    /// [`Error::Run`] naming a process that was not.
    pub fn check_same(&self, config: &RunConfig) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let mut recipe = config.recipe.clone();
        recipe.compute = crate::compute::ComputeRecipe { device: Default::default(), ..recipe.compute };
        let recipe = serde_json::to_vec(&recipe).map_err(|e| Error::Invalid(format!("the recipe: {e}")))?;
        let all = group
            .gather(format!("{} images of {} channels", config.source.images, config.source.channels).as_bytes())?;
        let recipes = group.gather(&recipe)?;
        for rank in 1..group.world() {
            if recipes[rank] != recipes[0] {
                return Err(Error::Run(format!(
                    "process {rank} was started with another recipe than process 0; give all the same arguments"
                )));
            }
            if all[rank] != all[0] {
                let [own, first] = [&all[rank], &all[0]].map(|text| String::from_utf8_lossy(text));
                return Err(Error::Run(format!(
                    "process {rank} has {own} and process 0 {first}: all need the same data set"
                )));
            }
        }
        Ok(())
    }

    /// What process 0 says; itself where there is one only.
    pub fn of_first<T: Serialize + for<'a> Deserialize<'a>>(&self, own: T) -> Result<T> {
        let Some(group) = &self.0 else { return Ok(own) };
        let text = serde_json::to_vec(&own).map_err(unreadable)?;
        serde_json::from_slice(&group.from_first(&text)?).map_err(unreadable)
    }

    /// Brings the notes of all together: the same in every process.
    pub fn agree(&self, own: Note) -> Result<Note> {
        let Some(group) = &self.0 else { return Ok(own) };
        let text = serde_json::to_vec(&own).map_err(unreadable)?;
        let mut together = Note::default();
        for (rank, text) in group.gather(&text)?.iter().enumerate() {
            let note: Note = serde_json::from_slice(text).map_err(unreadable)?;
            together.stop |= note.stop;
            together.save |= note.save && rank == 0;
            together.said.extend(note.said);
        }
        Ok(together)
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::Run(format!("a process says what this one does not understand: {error}"))
}
