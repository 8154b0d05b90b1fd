//! Fault injection: workers fail at a given rank, step and phase. The launcher must report the cause, rank and exit code, and
//! leave nothing behind.
//!
//! The tests inject each fault once; `make faults` injects every fault in every phase on every rank, many times, and prints a
//! table. With FNET_UPDATE_DOCS it writes the table to docs/tables/faults.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use fnet_protocol::fault::{self, Kind};
use fnet_protocol::message::{Phase, name_of};

use crate::support::{Ended, Scene};

const RANKS: usize = 3;
/// Seconds without progress or heartbeat after which a hung worker is detected.
const DEADLINE: u32 = 8;

/// One injected fault.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: Kind,
    phase: Phase,
    rank: usize,
}

impl Case {
    fn new(kind: Kind, phase: Phase, rank: usize) -> Self {
        Self { kind, phase, rank }
    }

    /// Only rank 0 computes metrics.
    fn exists(&self) -> bool {
        self.phase != Phase::Summary || self.rank == 0
    }

    fn is_in_step(&self) -> bool {
        use Phase::{AllReduce, Backward, Data, Forward, Optimizer};
        matches!(self.phase, Data | Forward | Backward | AllReduce | Optimizer)
    }

    /// The expected exit code and texts of the report.
    fn expected(&self) -> (i32, &'static [&'static str]) {
        match self.kind {
            Kind::Panic => (1, &["panic in thread main", "fault injection"]),
            Kind::Exit => (4, &["exited with code 17"]),
            Kind::Abort => (4, &["killed by SIGABRT"]),
            Kind::Kill => (4, &["killed by SIGKILL: by a user"]),
            Kind::OutOfMemory => (4, &["out of memory: the limit of its control group was reached"]),
            Kind::Stop => (5, &["sent no heartbeat", "it is stopped, by SIGSTOP"]),
            Kind::Sleep => (5, &["has been in"]),
            Kind::Read => (5, &["has been in", "in a read of /"]),
            Kind::Collective => (1, &["is in another collective than the others", "barrier"]),
            Kind::Terminate => (75, &["stopped on request"]),
        }
    }

    /// The deadline that the failing rank misses. The other deadlines stay long because a busy machine is slow.
    fn deadline(&self) -> Option<&'static str> {
        match (self.kind, self.phase) {
            (Kind::Stop, _) => Some("silence"),
            (Kind::Sleep | Kind::Read, Phase::Start | Phase::Index) => Some("start"),
            (Kind::Sleep | Kind::Read, Phase::Evaluation | Phase::Summary) => Some("eval"),
            (Kind::Sleep | Kind::Read, Phase::Checkpoint) => Some("save"),
            (Kind::Sleep | Kind::Read, _) => Some("step"),
            _ => None,
        }
    }

    fn line(&self) -> String {
        let step = if self.is_in_step() { ",step=2" } else { "" };
        let fault = format!("{}:rank={},phase={}{step}", name_of(self.kind), self.rank, name_of(self.phase));
        let deadline = self.deadline().map(|name| format!("--{name}-timeout {DEADLINE}")).unwrap_or_default();
        format!(
            "--device cpu --nproc {RANKS} --max-restarts 0 {deadline} train cfg.toml --set train.epochs=1 --fault {fault}"
        )
    }

    /// Injects the fault. Returns the time from the fault to the exit of the launcher.
    fn run(&self, scene: &Scene) -> Result<Duration, String> {
        let ended = scene.launch(&self.line());
        let end = SystemTime::now();
        let (code, texts) = self.expected();
        let headline = format!("rank {} failed: ", self.rank);
        let missing: Vec<_> =
            texts.iter().copied().chain([headline.as_str()]).filter(|text| !ended.stderr.contains(text)).collect();
        if ended.code != code || !missing.is_empty() {
            return Err(self.describe(&ended, &format!("code {} for {code}, missing {missing:?}", ended.code)));
        }
        self.check_report(scene).map_err(|what| self.describe(&ended, &what))?;
        check_clean(scene).map_err(|what| self.describe(&ended, &what))?;
        // The last line that the failing rank wrote reports the fault.
        let log = fs::metadata(scene.path(&format!("work_dirs/cfg/logs/rank_{}.log", self.rank)));
        let fault = log.and_then(|metadata| metadata.modified()).map_err(|error| error.to_string())?;
        Ok(end.duration_since(fault).unwrap_or_default())
    }

    fn describe(&self, ended: &Ended, what: &str) -> String {
        let lines: Vec<&str> = ended.stderr.lines().collect();
        format!("{self:?}: {what}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Checks that `failure.json` reports the same failure.
    fn check_report(&self, scene: &Scene) -> Result<(), String> {
        let text = fs::read_to_string(scene.path("work_dirs/cfg/logs/failure.json")).map_err(|e| e.to_string())?;
        let report: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let same = report["rank"] == self.rank
            && report["exit_code"] == self.expected().0
            && report["phase"] == name_of(self.phase)
            && (!self.is_in_step() || report["step"] == 2);
        if same { Ok(()) } else { Err(format!("failure.json reports another failure: {text}")) }
    }
}

/// Checks that no pipe, control group or partial file is left. The scene checks for processes.
fn check_clean(scene: &Scene) -> Result<(), String> {
    let mut left: Vec<PathBuf> = Vec::new();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = fault::control_group(&groups, Path::new("/sys/fs/cgroup"), 0);
    let group = group.as_ref().and_then(|(folder, _)| folder.parent());
    for folder in [Some(scene.path("work_dirs/cfg").as_path()), Some(&scene.path("tmp")), group].into_iter().flatten() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        left.extend(entries.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("fnet-fault") || name.ends_with(".tmp")
        }));
    }
    // Ignore the control groups of other tests that run at the same time.
    left.retain(|path| !path.starts_with("/sys") || owner_is_gone(path));
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Whether the process that a control group is named after has ended; waits a moment for it.
fn owner_is_gone(group: &Path) -> bool {
    let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let process = name.rsplit('-').next().unwrap_or_default().to_owned();
    let deadline = Instant::now() + Duration::from_secs(10);
    while group.exists() && Instant::now() < deadline {
        if Path::new("/proc").join(&process).exists() {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    group.exists()
}

/// Whether this process may create control groups with a memory limit, which the out-of-memory fault needs.
fn may_limit_memory() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some((folder, limits)) = fault::control_group(&groups, Path::new("/sys/fs/cgroup"), std::process::id()) else {
        return false;
    };
    let is_created = fs::create_dir(&folder).is_ok() && fs::write(folder.join(limits[0]), "1000000000").is_ok();
    let _ = fs::remove_dir(&folder);
    is_created
}

fn once(kind: Kind, phase: Phase, rank: usize) {
    if kind == Kind::OutOfMemory && !may_limit_memory() {
        println!("SKIPPED the out-of-memory fault: this process may not create control groups with a memory limit");
        return;
    }
    let case = Case::new(kind, phase, rank);
    let scene = if case.deadline().is_some() { Scene::of(1) } else { Scene::new() };
    if let Err(what) = case.run(&scene) {
        panic!("{what}");
    }
}

#[test]
fn a_panic_is_a_bug_with_its_location_and_stack() {
    once(Kind::Panic, Phase::Forward, 1);
}

#[test]
fn an_unknown_exit_code_is_reported() {
    once(Kind::Exit, Phase::Start, 2);
}

#[test]
fn an_abort_in_native_code_is_a_lost_worker() {
    once(Kind::Abort, Phase::Evaluation, 0);
}

// https://github.com/huggingface/accelerate/pull/2830: only "exit -9", without an explanation.
#[test]
fn a_killed_worker_is_reported_with_its_phase_and_step() {
    once(Kind::Kill, Phase::AllReduce, 0);
}

#[test]
fn the_memory_limit_of_a_control_group_is_distinguished_from_a_kill() {
    once(Kind::OutOfMemory, Phase::Backward, 1);
}

#[test]
fn a_stopped_worker_is_distinguished_from_a_sleeping_one() {
    once(Kind::Stop, Phase::Checkpoint, 1);
}

// https://github.com/pytorch/pytorch/issues/118369: which rank, where, why?
#[test]
fn a_sleeping_worker_is_reported_and_not_those_that_wait_for_it() {
    once(Kind::Sleep, Phase::Data, 2);
}

#[test]
fn an_endless_read_is_reported_with_its_file() {
    once(Kind::Read, Phase::Optimizer, 1);
}

#[test]
fn a_rank_in_a_different_collective_is_reported_as_a_bug() {
    once(Kind::Collective, Phase::Forward, 1);
}

/// Trains ten steps on `count` workers.
fn many_workers(count: usize) {
    let scene = Scene::of(count);
    let steps = scene.steps(count);
    let epochs = 10_usize.div_ceil(steps);
    let line = format!(
        "--device cpu --nproc {count} train cfg.toml --no-validate --set train.epochs={epochs} checkpoint.interval={epochs}"
    );
    scene.launch(&line).expect(0, &[&format!("Epoch [{epochs}][{steps}/{steps}]")]);
    assert!(scene.path(&format!("work_dirs/cfg/epoch_{epochs}.ckpt")).is_file());
}

#[test]
fn twelve_workers_train_ten_steps_and_stop_cleanly() {
    many_workers(12);
}

#[test]
#[ignore = "takes 40 seconds of two cores; run by make drill"]
fn sixty_four_workers_train_ten_steps_and_stop_cleanly() {
    many_workers(64);
}

/// The results of all runs of one fault and phase.
#[derive(Default)]
struct Row {
    runs: usize,
    seconds: Vec<f64>,
    failures: Vec<String>,
}

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "takes more than an hour; run by make drill"]
fn every_fault_in_every_phase_on_every_rank() {
    let rounds = variable("FNET_FAULTS_ROUNDS", 20);
    let jobs = variable("FNET_FAULTS_JOBS", 4);
    let list = |name| std::env::var(name).unwrap_or_default();
    let (only, only_phases) = (list("FNET_FAULTS_ONLY"), list("FNET_FAULTS_PHASES"));
    let is_among = |name: &str, list: &str| list.is_empty() || list.split(',').any(|one| one == name);
    let memory = may_limit_memory();
    // A stop request is not a failure.
    let failures = Kind::value_variants().iter().copied().filter(|kind| *kind != Kind::Terminate);
    let kinds = failures.filter(|kind| *kind != Kind::OutOfMemory || memory);
    let kinds: Vec<Kind> = kinds.filter(|kind| is_among(&name_of(*kind), &only)).collect();
    // Kinds are innermost: some wait for a deadline and others use the CPU, so different kinds run well at the same time.
    let phases = Phase::value_variants().iter().copied().filter(|&phase| is_among(&name_of(phase), &only_phases));
    let places = phases.flat_map(|phase| (0..RANKS).map(move |rank| (phase, rank)));
    let cases: Vec<Case> = places
        .flat_map(|(phase, rank)| kinds.iter().map(move |&kind| Case::new(kind, phase, rank)))
        .filter(Case::exists)
        .collect();
    let total = cases.len() * rounds;
    let next = AtomicUsize::new(0);
    let rows: Mutex<BTreeMap<(usize, usize), Row>> = Mutex::default();
    // Holds the slot of this process while its jobs run at the same time.
    let turn = Scene::new();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return;
                    }
                    // Rounds are outermost, so that an aborted run has covered every case.
                    let case = cases[number % cases.len()];
                    let outcome = case.run(&turn.beside());
                    let mut rows = rows.lock().unwrap();
                    let row = rows.entry(place_of(case)).or_default();
                    row.runs += 1;
                    match outcome {
                        Ok(time) => row.seconds.push(time.as_secs_f64()),
                        Err(what) => {
                            eprintln!("{what}");
                            row.failures.push(what);
                        }
                    }
                    if (number + 1).is_multiple_of(50) {
                        eprintln!("{} of {total} runs", number + 1);
                    }
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap();
    let table = table(&rows);
    println!("{table}");
    let is_whole = only.is_empty() && only_phases.is_empty();
    if is_whole && std::env::var_os("FNET_UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tables/faults.md");
        fs::write(path, format!("{TABLE_HEAD}{table}")).unwrap();
    }
    let failures: usize = rows.values().map(|row| row.failures.len()).sum();
    assert_eq!(failures, 0, "of {total} runs");
}

/// Row of a case in the table: fault, then phase.
fn place_of(case: Case) -> (usize, usize) {
    let kind = Kind::value_variants().iter().position(|kind| *kind == case.kind).unwrap();
    (kind, Phase::value_variants().iter().position(|phase| *phase == case.phase).unwrap())
}

/// The text above the table in docs/tables/faults.md.
const TABLE_HEAD: &str = "# Measured faults

Written by `FNET_UPDATE_DOCS=1 make faults`. [reliability.md](../reliability.md#fault-injection) explains the faults and
phases. Seconds are from the fault to the exit of the launcher.

";

/// The table as Markdown: seconds from the fault to the exit of the launcher, median and maximum.
fn table(rows: &BTreeMap<(usize, usize), Row>) -> String {
    let mut text =
        String::from("| fault | phase | runs | passed | median s | max s |\n| --- | --- | --- | --- | --- | --- |\n");
    for (&(kind, phase), row) in rows {
        let mut seconds = row.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let (median, maximum) = (seconds.get(seconds.len() / 2), seconds.last());
        let show = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            name_of(Kind::value_variants()[kind]),
            name_of(Phase::value_variants()[phase]),
            row.runs,
            row.seconds.len(),
            show(median),
            show(maximum)
        );
    }
    text
}
