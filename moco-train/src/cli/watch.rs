//! What a person sees of a run: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use moco_train::health::HealthReport;
use moco_train::run::{EvalRecord, Observer, RunPlan, StepRecord};

/// Between two plain lines.
const PAUSE: Duration = Duration::from_secs(15);

/// Share of a new value in the smoothed one.
const SMOOTHING: f64 = 0.05;

/// Prints the progress of a run to the standard error.
pub struct Watch {
    quiet: bool,
    bar: Option<ProgressBar>,
    plan: Option<RunPlan>,
    smooth: Option<Smooth>,
    printed: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Smooth {
    loss: f64,
    acc1: f64,
    images_per_s: f64,
    data_wait: f64,
}

impl Watch {
    /// Says nothing but errors when quiet.
    pub fn new(quiet: bool) -> Watch {
        Watch { quiet, bar: None, plan: None, smooth: None, printed: None }
    }

    /// One line.
    pub fn say(&mut self, text: &str) {
        match (&self.bar, self.quiet) {
            (_, true) => {}
            (Some(bar), _) => bar.suspend(|| eprintln!("{text}")),
            (None, _) => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, record: &StepRecord) -> String {
        let (plan, s) = (self.plan.expect("started before the first step"), self.smooth.expect("set by every step"));
        let epoch = record.step as f64 / plan.steps_per_epoch as f64;
        let wait =
            if s.data_wait > 0.05 { format!(", waiting for data {:.0} %", 100.0 * s.data_wait) } else { String::new() };
        format!(
            "epoch {epoch:.1}/{} loss {:.3} acc {:.1} % lr {:.4} {:.0} img/s{wait}",
            plan.epochs,
            s.loss,
            100.0 * s.acc1,
            record.lr,
            s.images_per_s
        )
    }
}

impl Observer for Watch {
    fn started(&mut self, plan: &RunPlan, step: u64) {
        self.plan = Some(*plan);
        let from = if step > 0 { format!(", going on after step {step}") } else { String::new() };
        self.say(&format!("{} epochs of {} steps of {} images{from}", plan.epochs, plan.steps_per_epoch, plan.batch));
        if !self.quiet && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(plan.steps()).with_position(step);
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} [{elapsed} < {eta}]");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, r: &StepRecord) {
        let new = Smooth { loss: r.loss, acc1: r.acc1, images_per_s: r.images_per_s, data_wait: r.data_wait };
        let mix = |old: f64, new: f64| old + SMOOTHING * (new - old);
        self.smooth = Some(self.smooth.map_or(new, |old| Smooth {
            loss: mix(old.loss, new.loss),
            acc1: mix(old.acc1, new.acc1),
            images_per_s: mix(old.images_per_s, new.images_per_s),
            data_wait: mix(old.data_wait, new.data_wait),
        }));
        if let Some(bar) = &self.bar {
            bar.set_position(r.step);
            bar.set_message(self.line(r));
        } else if self.printed.is_none_or(|t| t.elapsed() >= PAUSE) {
            self.printed = Some(Instant::now());
            self.say(&format!("step {} {}", r.step, self.line(r)));
        }
    }

    fn health(&mut self, report: &HealthReport) {
        self.say(&report.text());
    }

    fn eval(&mut self, r: &EvalRecord) {
        self.say(&format!(
            "{} accuracy after epoch {}: {:.2} % ({:.1} s)",
            r.metric,
            r.epoch,
            100.0 * r.value,
            r.seconds
        ));
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }
}
