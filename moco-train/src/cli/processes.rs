//! One training by several processes: started here, or by `torchrun` and the like.

use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use moco_engine::group::{Group, Meeting, Place};

/// How long the others may take to end after this process.
const MOMENT: Duration = Duration::from_secs(20);

/// The flag of commands that several processes can share.
#[derive(clap::Args)]
pub struct ProcessArgs {
    /// Processes on this machine that train together; process i computes on GPU i (with --device cuda:N on GPU N + i), or with
    /// its share of the cores. The batch is that of all together, each has batch statistics of its own, keys are shuffled among
    /// them, gradients averaged. On several machines start the same command on each by `torchrun --no-python` or with RANK,
    /// WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; the run's folder must be the same for all
    #[arg(long, value_name = "N")]
    nproc: Option<usize>,
}

/// What this process is in a training.
pub enum Role {
    /// The only one.
    Alone,
    /// One whose place the environment tells.
    Placed(Place),
    /// The first, which starts the others.
    Starter(usize),
}

/// The processes of a training, once they have met.
pub struct Company {
    group: Option<Arc<Group>>,
    /// Those that this one has started.
    others: Vec<Child>,
}

impl ProcessArgs {
    /// What this process is, by flag and environment.
    pub fn role(&self) -> Result<Role> {
        match (self.nproc, Place::from_env()?) {
            (Some(0), _) => bail!("--nproc 0: at least one process is needed"),
            (Some(n), Some(place)) if n != place.world => bail!(
                "--nproc {n}, and WORLD_SIZE is {}: whoever set it starts the processes already; leave --nproc out",
                place.world
            ),
            (_, Some(place)) => Ok(Role::Placed(place)),
            (Some(n), None) if n > 1 => Ok(Role::Starter(n)),
            _ => Ok(Role::Alone),
        }
    }
}

impl Role {
    /// Whether it writes and speaks.
    pub fn is_first(&self) -> bool {
        !matches!(self, Role::Placed(place) if place.rank > 0)
    }

    /// Threads for this process where `threads` are wished for; 0 = its share of the cores.
    pub fn threads(&self, threads: usize) -> usize {
        let here = match self {
            Role::Alone => return threads,
            Role::Placed(place) => place.local_world,
            Role::Starter(n) => *n,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if threads == 0 { (cores / here).max(1) } else { threads }
    }

    /// Starts the others where this process is to, and waits until all have met.
    pub fn join(self) -> Result<Company> {
        match self {
            Role::Alone => Ok(Company { group: None, others: vec![] }),
            Role::Placed(place) => Ok(Company { group: Some(Group::join(&place)?), others: vec![] }),
            Role::Starter(n) => start(n),
        }
    }
}

impl Company {
    /// Does this process's part of the training and ends it: the others learn how it went, and are waited for.
    pub fn run<R>(mut self, part: impl FnOnce(Option<Arc<Group>>) -> Result<R>) -> Result<R> {
        let outcome = part(self.group.clone());
        let Some(group) = self.group.take() else { return outcome };
        match &outcome {
            Ok(_) => group.leave(),
            Err(error) => group.fail(&format!("{error:#}")),
        }
        let late = Instant::now() + MOMENT;
        for (i, other) in self.others.iter_mut().enumerate() {
            if let Some(status) = end(other, late).filter(|_| outcome.is_ok()) {
                eprintln!("warning: process {} ended with {status} after its part was done", i + 1);
            }
        }
        outcome.with_context(|| format!("process {} of {}", group.rank(), group.world()))
    }
}

/// Starts this very command for each other process.
fn start(world: usize) -> Result<Company> {
    let meeting = Meeting::on_this_machine()?;
    let address = format!("127.0.0.1:{}", meeting.port()?);
    let place = |rank| Place { rank, world, local_rank: rank, local_world: world, address: address.clone() };
    let program = std::env::current_exe().context("the path of this program")?;
    let mut company = Company { group: None, others: vec![] };
    for rank in 1..world {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).envs(place(rank).variables());
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE").stdin(std::process::Stdio::null());
        let started = command.spawn().with_context(|| format!("cannot start process {rank} of {world}"));
        company.others.push(started?);
    }
    let mut still_coming =
        || match company.others.iter_mut().enumerate().find_map(|(i, other)| Some((i, ended(other)?))) {
            None => Ok(()),
            Some((i, status)) => {
                let text =
                    format!("process {} of {world} ended with {status} before all had met; see its error above", i + 1);
                Err(moco_engine::Error::Group(text))
            }
        };
    company.group = Some(Group::host(&place(0), meeting, &mut still_coming)?);
    Ok(company)
}

fn ended(process: &mut Child) -> Option<ExitStatus> {
    process.try_wait().ok().flatten()
}

/// Waits for a process and ends it when it is late; its status if it is not that of a good end or an interruption.
fn end(process: &mut Child, late: Instant) -> Option<ExitStatus> {
    let status = loop {
        match ended(process) {
            Some(status) => break status,
            None if Instant::now() > late => {
                let _ = process.kill();
                break process.wait().ok()?;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let as_asked = status.success() || status.code() == Some(i32::from(super::pretrain::INTERRUPTED));
    (!as_asked).then_some(status)
}

impl Drop for Company {
    fn drop(&mut self) {
        // Where they never met, the others would wait for this one.
        for other in &mut self.others {
            if ended(other).is_none() {
                let _ = other.kill();
                let _ = other.wait();
            }
        }
    }
}
