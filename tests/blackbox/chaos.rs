//! Chaos test: training is disturbed repeatedly at random times. It must end with the same weights as without disturbance,
//! lose no completed step, and leave nothing behind.
//!
//! A short version is part of the tests; `make chaos` disturbs 200 times and prints the table of docs/reliability.md.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fnet_checkpoint::native;
use fnet_protocol::env;

use crate::outputs::{differences, files, of_mode, without_ranks};
use crate::support::{Running, Scene, launcher};

const RANKS: usize = 3;
/// Possible exit codes of the launcher of a disturbed job: a lost worker, a hung worker, a full disk. -1 means a signal.
const DISTURBED: [i32; 4] = [4, 5, 6, -1];
/// Size of the small disk of the work folder.
const DISK: &str = "size=24m";
/// Maximum time between two disturbances, in milliseconds.
const MAX_PAUSE: u64 = 2500;

/// What happens to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    /// SIGKILL to one rank.
    Kill,
    /// SIGSTOP to one rank.
    Stop,
    /// SIGKILL to the launcher.
    KillLauncher,
    /// SIGKILL to every process.
    KillAll,
    /// The disk is full for a while.
    FullDisk,
    /// The disk is full for a while, and a rank is killed during that time.
    FullDiskAndKill,
    /// The newest checkpoint is damaged, then a rank is killed.
    DamageAndKill,
    /// The newest checkpoint is damaged, then every process is killed.
    DamageAndKillAll,
}

use Disturbance::{DamageAndKill, DamageAndKillAll, FullDisk, FullDiskAndKill, Kill, KillAll, KillLauncher, Stop};

impl Disturbance {
    const ALL: [Self; 8] =
        [Kill, Stop, KillLauncher, KillAll, FullDisk, FullDiskAndKill, DamageAndKill, DamageAndKillAll];

    fn name(self) -> &'static str {
        match self {
            Kill => "kill -9 of a rank",
            Stop => "SIGSTOP of a rank",
            KillLauncher => "kill -9 of the launcher",
            KillAll => "kill -9 of everything",
            FullDisk => "full disk",
            FullDiskAndKill => "full disk, kill -9 of a rank",
            DamageAndKill => "newest checkpoint damaged, kill -9 of a rank",
            DamageAndKillAll => "newest checkpoint damaged, kill -9 of everything",
        }
    }

    /// Whether a rank survives with its completed steps.
    fn has_survivors(self) -> bool {
        !matches!(self, KillLauncher | KillAll | DamageAndKillAll)
    }

    fn needs_disk(self) -> bool {
        matches!(self, FullDisk | FullDiskAndKill)
    }

    fn damages(self) -> bool {
        matches!(self, DamageAndKill | DamageAndKillAll)
    }
}

/// A simple random number generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// A disturbance, and the number of log lines at that time.
struct Event {
    what: Disturbance,
    lines: usize,
    recovered: Option<Duration>,
}

impl Event {
    /// Whether it may be the reason why the log goes back at this line. A few steps may be logged between reading the log and
    /// the disturbance.
    fn explains(&self, line: usize) -> bool {
        (self.lines..=self.lines + 3).contains(&line)
    }
}

/// A job under disturbance.
struct Job<'a> {
    scene: &'a Scene,
    name: String,
    epochs: usize,
    dice: Dice,
    events: Vec<Event>,
    disk: Option<Disk>,
    /// Bytes of the log at the last start of the launcher.
    log_at_start: u64,
}

impl Job<'_> {
    fn folder(&self) -> PathBuf {
        self.scene.path(&self.name)
    }

    fn line(&self, resume: bool) -> String {
        line(&self.name, self.epochs, if resume { "--resume" } else { "" })
    }

    /// Runs the job until it finishes, with at most `most` disturbances.
    fn run(&mut self, most: usize) {
        loop {
            let resume = self.checkpoint_folders().any(|folder| !checkpoints(&folder).is_empty());
            let command = self.scene.command(&launcher(), &self.line(resume));
            self.log_at_start = log_bytes(&self.folder());
            let mut running = Running::start(command, self.scene.path("chaos.txt"));
            while self.events.len() < most && running.runs() {
                let pause = Duration::from_millis(self.dice.roll(MAX_PAUSE));
                let from = Instant::now();
                while from.elapsed() < pause && running.runs() {
                    thread::sleep(Duration::from_millis(2));
                }
                if running.runs() {
                    self.disturb(&mut running);
                }
            }
            let ended = running.wait_for(Duration::from_secs(600));
            self.scene.assert_nothing_left();
            if ended.code == 0 {
                return;
            }
            let events: Vec<_> = self.events.iter().rev().take(4).map(|event| event.what).collect();
            assert!(DISTURBED.contains(&ended.code), "code {} after {events:?}:\n{}", ended.code, ended.stderr);
        }
    }

    /// The folders that may contain its checkpoints.
    fn checkpoint_folders(&self) -> impl Iterator<Item = PathBuf> {
        let fallback = fs::read_dir(self.scene.path("fallback")).into_iter().flatten().flatten();
        let own = fallback.map(|entry| entry.path()).filter(|folder| folder.to_string_lossy().ends_with(&self.name));
        std::iter::once(self.folder()).chain(own)
    }

    fn disturb(&mut self, running: &mut Running) {
        let has_disk = self.disk.is_some();
        let may_damage = self.may_damage();
        let possible: Vec<Disturbance> = Disturbance::ALL
            .into_iter()
            .filter(|what| (has_disk || !what.needs_disk()) && (may_damage || !what.damages()))
            .collect();
        let what = possible[self.dice.roll(possible.len() as u64) as usize];
        let rank = self.dice.roll(RANKS as u64) as usize;
        let lines = of_mode(&self.folder(), "train").len();
        let at = Instant::now();
        match what {
            Kill => self.signal_rank(rank, "KILL"),
            Stop => self.signal_rank(rank, "STOP"),
            KillLauncher => running.signal("KILL"),
            KillAll => self.kill_all(running),
            FullDisk | FullDiskAndKill => {
                let disk = self.disk.as_ref().unwrap();
                let ballast = disk.fill();
                let filled = Duration::from_millis(200 + self.dice.roll(1500));
                if what == FullDiskAndKill {
                    thread::sleep(filled / 2);
                    self.signal_rank(rank, "KILL");
                }
                thread::sleep(filled);
                fs::remove_file(ballast).unwrap();
            }
            DamageAndKill | DamageAndKillAll => {
                self.damage_newest();
                if what == DamageAndKill { self.signal_rank(rank, "KILL") } else { self.kill_all(running) }
            }
        }
        self.events.push(Event { what, lines, recovered: None });
        self.watch_recovery(running, at);
    }

    /// Records when the log grows again, unless the next disturbance is due earlier.
    fn watch_recovery(&mut self, running: &mut Running, since: Instant) {
        thread::sleep(Duration::from_millis(100));
        let before = log_bytes(&self.folder());
        let timeout = Duration::from_millis(500 + self.dice.roll(15_000));
        while since.elapsed() < timeout && running.runs() {
            if log_bytes(&self.folder()) > before {
                let event = self.events.last_mut().unwrap();
                event.recovered = Some(since.elapsed());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal_rank(&self, rank: usize, name: &str) {
        // During a restart there is no such process.
        if let Some(process) = self.scene.find_process(env::RANK, rank) {
            let _ = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
        }
    }

    fn kill_all(&self, running: &Running) {
        running.signal("KILL");
        self.scene.kill_all();
    }

    /// Whether the job can lose its newest checkpoint: the ranks have trained since the last start, so the survivors have its
    /// steps, and there is an older checkpoint in case nobody survives.
    fn may_damage(&self) -> bool {
        let has_recovered = self.events.last().is_none_or(|event| event.recovered.is_some());
        let is_valid = |path: &PathBuf| native::verify(path).is_ok();
        has_recovered
            && log_bytes(&self.folder()) > self.log_at_start
            && self.checkpoint_folders().flat_map(|folder| checkpoints(&folder)).filter(is_valid).nth(1).is_some()
    }

    /// Truncates the newest checkpoint or flips one of its bits.
    fn damage_newest(&mut self) {
        let mut found = checkpoints(&self.folder());
        found.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        let Some(newest) = found.last() else { return };
        // It may have been replaced in the meantime.
        let Ok(mut bytes) = fs::read(newest) else { return };
        let place = self.dice.roll(bytes.len().max(1) as u64) as usize;
        if self.dice.roll(2) == 0 {
            bytes.truncate(place);
        } else if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 1 << self.dice.roll(8);
        }
        // In place, as on a failing disk.
        let file = fs::OpenOptions::new().write(true).truncate(true).open(newest);
        let _ = file.and_then(|mut file| file.write_all(&bytes));
    }

    /// Steps that were repeated although a rank survived, by the last event; and those after which no rank survived.
    fn repeated(&self) -> (BTreeMap<Disturbance, usize>, BTreeMap<Disturbance, usize>) {
        let number = |line: &crate::outputs::Object, name: &str| line[name].as_u64().unwrap() as usize;
        let trained: Vec<usize> = of_mode(&self.folder(), "train")
            .iter()
            .map(|line| (number(line, "epoch") - 1) * self.scene.steps(RANKS) + number(line, "iter"))
            .collect();
        let (mut lost, mut unavoidable) = (BTreeMap::new(), BTreeMap::new());
        let mut before = 0;
        for (place, &step) in trained.iter().enumerate() {
            if step <= before {
                let events = self.events.iter().filter(|event| event.explains(place));
                let since: Vec<Disturbance> = events.map(|event| event.what).collect();
                let nobody = since.iter().any(|what| !what.has_survivors()) || since.len() >= RANKS;
                let last = since.last().copied().unwrap_or(Kill);
                *if nobody { &mut unavoidable } else { &mut lost }.entry(last).or_default() += before + 1 - step;
            }
            before = step;
        }
        (lost, unavoidable)
    }

    fn assert_equal_to(&self, whole: &Path) {
        let last = format!("epoch_{}.ckpt", self.epochs);
        let found = self.checkpoint_folders().map(|folder| folder.join(&last)).find(|path| path.is_file()).unwrap();
        let [a, b] = [found, whole.join(&last)].map(|path| without_ranks(&path));
        assert_eq!(differences(&a, &b), Vec::<String>::new(), "after {} disturbances", self.events.len());
    }
}

fn line(folder: &str, epochs: usize, more: &str) -> String {
    let limits = "--silence-timeout 4 --step-timeout 10 --eval-timeout 10 --save-timeout 20 --start-timeout 30";
    format!(
        "--device cpu --nproc {RANKS} --max-restarts 1000 {limits} train cfg.toml --work-dir {folder} {more} --set \
         train.epochs={epochs} train.ema=0.9 optimizer.grad_clip=5.0 model.backbone.drop_path_rate=0.2 schedule.steps=[3] \
         evaluation.interval=2 checkpoint.keep_last=3"
    )
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    files(folder, ".ckpt").into_iter().filter(|path| !path.ends_with("latest.ckpt")).collect()
}

fn log_bytes(folder: &Path) -> u64 {
    files(folder, ".log.json").iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.len()).sum()
}

/// A small file system in memory, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a disk if this process is allowed to.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&at).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        println!("SKIPPED disk disturbances: this process may not mount a file system");
        None
    }

    /// Fills it with a file, and returns the path of the file.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        let block = vec![1; 1 << 16];
        while file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Disturbs jobs of `epochs` epochs `total` times, and returns the table.
fn disturb(total: usize, epochs: usize, seed: u64) -> String {
    println!("seed {seed}");
    let scene = Scene::new();
    scene.extend_config("[checkpoint]\ninterval = \"7 steps\"\nfallback = [\"fallback\"]\n");
    fs::create_dir(scene.path("fallback")).unwrap();
    let whole = finish_undisturbed(&scene, epochs);
    let (mut lost, mut unavoidable): (BTreeMap<_, usize>, BTreeMap<_, usize>) = (BTreeMap::new(), BTreeMap::new());
    let mut all: Vec<Event> = Vec::new();
    for run in 0.. {
        if all.len() >= total {
            break;
        }
        let name = format!("chaos{run}");
        let disk = Disk::mount(scene.path(&name));
        let dice = Dice(seed.wrapping_add(run).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut job = Job { scene: &scene, name, epochs, dice, events: Vec::new(), disk, log_at_start: 0 };
        job.run(total - all.len());
        job.assert_equal_to(&whole);
        let (more_lost, more_unavoidable) = job.repeated();
        more_lost.into_iter().for_each(|(what, steps)| *lost.entry(what).or_default() += steps);
        more_unavoidable.into_iter().for_each(|(what, steps)| *unavoidable.entry(what).or_default() += steps);
        assert!(files(&job.folder(), ".tmp").is_empty(), "{:?}", files(&job.folder(), ".tmp"));
        all.append(&mut job.events);
        eprintln!("{} of {total} disturbances", all.len());
    }
    let table = table(&all, &lost, &unavoidable);
    assert!(lost.is_empty(), "completed steps were lost:\n{table}");
    table
}

fn finish_undisturbed(scene: &Scene, epochs: usize) -> PathBuf {
    let running = Running::start(scene.command(&launcher(), &line("whole", epochs, "")), scene.path("whole.txt"));
    running.wait_for(Duration::from_secs(1200)).expect(0, &[]);
    scene.path("whole")
}

fn table(events: &[Event], lost: &BTreeMap<Disturbance, usize>, unavoidable: &BTreeMap<Disturbance, usize>) -> String {
    let mut text = String::from(
        "| disturbance | times | completed steps lost | steps repeated after no rank survived | median s until the next \
         step | max s |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for what in Disturbance::ALL {
        let of: Vec<&Event> = events.iter().filter(|event| event.what == what).collect();
        let mut seconds: Vec<f64> = of.iter().filter_map(|event| Some(event.recovered?.as_secs_f64())).collect();
        seconds.sort_by(f64::total_cmp);
        let show = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            what.name(),
            of.len(),
            lost.get(&what).unwrap_or(&0),
            unavoidable.get(&what).unwrap_or(&0),
            show(seconds.get(seconds.len() / 2)),
            show(seconds.last())
        );
    }
    text
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    number("FNET_CHAOS_SEED").unwrap_or(now.as_millis() as u64)
}

#[test]
fn training_disturbed_at_random_ends_with_the_same_weights() {
    println!("{}", disturb(8, 7, seed()));
}

#[test]
#[ignore = "takes 10 minutes; run by make chaos"]
fn chaos() {
    let events = number("FNET_CHAOS_EVENTS").unwrap_or(200) as usize;
    println!("{}", disturb(events, 60, seed()));
}
