//! Runs the real programs in a temporary folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use fnet_protocol::env;

use crate::messages::assert_logs_fit;
pub use crate::processes::signal;
use crate::processes::{self, TIMEOUT};
use crate::slots::{self, Slots};

/// Images for training and validation.
const IMAGES: [u32; 2] = [32, 8];
/// The same of a [`Scene::small`].
const FEW_IMAGES: [u32; 2] = [8, 4];
/// Environment variable that marks the processes of a scene.
const MARK: &str = "FNET_TEST_SCENE";
/// Slots of a test with jobs of two computing workers.
const TWO_WORKERS: usize = 2;

/// The config of a minimal detector on generated images.
const CONFIG: &str = r#"
[model]
num_classes = 8
[model.backbone]
embed_dim = 8
depths = [1, 1, 1, 1]
[model.neck]
out_channels = 16
[model.rpn]
feat_channels = 16
nms_pre = 100
train_nms_pre = 100
max_per_image = 50
sampler = { count = 64, positive_fraction = 0.5, add_ground_truth = false }
[model.roi_head]
bbox_fc_channels = 32
mask_channels = 16
mask_convs = 1
score_threshold = 0.001
sampler = { count = 32, positive_fraction = 0.25, add_ground_truth = true }
[data]
samples_per_gpu = 1
workers_per_gpu = 1
[data.train]
ann_file = "annotations/instances_train.json"
img_prefix = "train"
[data.val]
ann_file = "annotations/instances_val.json"
img_prefix = "val"
[data.pipeline]
scales = [[96, 64]]
test_scale = [96, 64]
[optimizer]
lr = 1e-3
[schedule]
warmup_iters = 4
[train]
epochs = 2
[log]
interval = 1
tensorboard = false
"#;

/// A folder with a config `cfg.toml` in which the programs run.
pub struct Scene {
    folder: tempfile::TempDir,
    images: PathBuf,
    _slots: Option<Slots>,
}

/// The files of a scene, which other scenes start from: their names, and their bytes or where they lead.
pub struct Files(Vec<(PathBuf, Result<Vec<u8>, PathBuf>)>);

/// A detector after an epoch on 16 images, `work_dirs/cfg/latest.ckpt`.
static DETECTOR: LazyLock<Files> = LazyLock::new(|| {
    let scene = Scene::on(Path::new("data"), None).with_generated(16, 4);
    scene.one("train cfg.toml --no-validate --set train.epochs=1 optimizer.lr=0.003");
    scene.files("work_dirs")
});

/// A running program.
pub struct Running {
    child: Child,
    stderr: PathBuf,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails unless the exit code is `code`, and stderr or, for results, stdout contains each of `texts`.
    pub fn expect(&self, code: i32, texts: &[&str]) -> &Self {
        let is_said = |text: &str| self.stderr.contains(text) || self.stdout.contains(text);
        let missing: Vec<_> = texts.iter().filter(|text| !is_said(text)).collect();
        let lines: Vec<&str> = self.stderr.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        assert!(self.code == code && missing.is_empty(), "code {} for {code}, missing {missing:?}:\n{end}", self.code);
        self
    }
}

impl Scene {
    /// A scene for jobs of about two computing workers.
    pub fn new() -> Self {
        Self::of(TWO_WORKERS)
    }

    /// A scene for jobs of this number of computing workers; 1 for jobs that mostly wait for a deadline.
    pub fn of(workers: usize) -> Self {
        Self::on(&shared_images(IMAGES), Some(slots::take(workers)))
    }

    /// A scene whose epochs are short.
    pub fn small() -> Self {
        Self::on(&shared_images(FEW_IMAGES), Some(slots::take(TWO_WORKERS)))
    }

    /// A scene with a copy of some images in `data/` that a test may damage.
    pub fn with_own_images() -> Self {
        Self::with_images(FEW_IMAGES[0], FEW_IMAGES[1])
    }

    /// A scene with its own training and validation images in `data/`.
    pub fn with_images(images: u32, val_images: u32) -> Self {
        Self::on(Path::new("data"), Some(slots::take(TWO_WORKERS))).with_generated(images, val_images)
    }

    /// [`Self::with_images`], with a detector that other images have trained, `work_dirs/cfg/latest.ckpt`.
    pub fn with_detector(images: u32, val_images: u32) -> Self {
        Self::with_files(&DETECTOR).with_generated(images, val_images)
    }

    /// A scene with the files of another one, which had its own images.
    pub fn with_files(files: &Files) -> Self {
        let scene = Self::on(Path::new("data"), Some(slots::take(TWO_WORKERS)));
        scene.put(files);
        scene
    }

    /// Another scene of the same test, for programs that run at the same time.
    pub fn beside(&self) -> Self {
        Self::on(&shared_images(IMAGES), None)
    }

    fn on(images: &Path, slots: Option<Slots>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = format!("[data]\nroot = {:?}\n", images.to_str().unwrap());
        fs::write(folder.path().join("cfg.toml"), CONFIG.replace("[data]\n", &root)).unwrap();
        Self { images: folder.path().join(images), folder, _slots: slots }
    }

    fn with_generated(self, images: u32, val_images: u32) -> Self {
        generate(&self.images, [images, val_images]);
        self
    }

    /// The folder of its data set.
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// Steps per epoch with one image per worker. Portrait and landscape images form groups, and each is filled up so that
    /// all workers have the same number.
    pub fn steps(&self, workers: usize) -> usize {
        let text = fs::read_to_string(self.images.join("annotations/instances_train.json")).unwrap();
        let set: serde_json::Value = serde_json::from_str(&text).unwrap();
        let images = set["images"].as_array().unwrap();
        let landscape = images.iter().filter(|image| image["width"].as_u64() > image["height"].as_u64()).count();
        landscape.div_ceil(workers) + (images.len() - landscape).div_ceil(workers)
    }

    /// Changes the annotation file of the set `train` or `val`.
    pub fn edit<T>(&self, set: &str, change: impl FnOnce(&mut serde_json::Value) -> T) -> T {
        let path = self.images.join(format!("annotations/instances_{set}.json"));
        let mut file = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let result = change(&mut file);
        fs::write(path, file.to_string()).unwrap();
        result
    }

    /// All files below a folder.
    pub fn files(&self, folder: &str) -> Files {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.path("").join(&folder)).unwrap().map(Result::unwrap) {
                let (name, path) = (folder.join(entry.file_name()), entry.path());
                match fs::read_link(&path) {
                    Ok(target) => found.push((name, Err(target))),
                    Err(_) if path.is_dir() => folders.push(name),
                    Err(_) => found.push((name, Ok(fs::read(path).unwrap()))),
                }
            }
        }
        Files(found)
    }

    /// Writes the files of another scene.
    pub fn put(&self, files: &Files) {
        for (name, content) in &files.0 {
            let path = self.path("").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content {
                Ok(bytes) => fs::write(path, bytes).unwrap(),
                Err(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program in this folder with `line` as its arguments.
    pub fn command(&self, program: &Path, line: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env(MARK, self.folder.path())
            .env(env::OMP_NUM_THREADS, "1")
            .stdin(Stdio::null());
        for name in [
            env::RANK,
            env::WORLD_SIZE,
            env::LOCAL_RANK,
            env::LOCAL_WORLD_SIZE,
            env::NNODES,
            env::NODE_RANK,
            env::MASTER_ADDR,
            env::MASTER_PORT,
            env::PORT,
            env::WORKER,
            env::DATA_ROOT,
            env::DEVICE,
            env::VERBOSITY,
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Runs `fnet-launch` to its end. No process may be left running.
    pub fn launch(&self, line: &str) -> Ended {
        let ended = finish(self.command(&launcher(), line));
        self.assert_nothing_left();
        ended
    }

    /// Runs `fnet-launch` with two workers. It must succeed.
    pub fn two(&self, line: &str) -> Ended {
        let ended = self.launch(&format!("--device cpu --nproc 2 {line}"));
        ended.expect(0, &[]);
        ended
    }

    /// Runs `fnet-launch` with one worker. It must succeed.
    pub fn one(&self, line: &str) -> Ended {
        let ended = self.launch(&format!("--device cpu --nproc 1 {line}"));
        ended.expect(0, &[]);
        ended
    }

    /// Runs a Python script with PyTorch in this folder and returns its output. If there is no such Python, the test is
    /// skipped.
    pub fn python(&self, script: &str) -> Option<String> {
        let mut command = self.command(&python_tool("python")?, "-c");
        command.arg(script);
        let ended = finish(command);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        Some(ended.stdout)
    }

    /// Starts `fnet-launch`.
    pub fn start(&self, line: &str) -> Running {
        Running::start(self.command(&launcher(), line), self.path("stderr.txt"))
    }

    fn mark(&self) -> String {
        format!("{MARK}={}", self.folder.path().display())
    }

    /// The live processes of this scene, with their environments.
    pub fn processes(&self) -> Vec<(u32, String)> {
        processes::marked(&self.mark())
    }

    /// The process of a rank.
    pub fn worker(&self, rank: usize) -> u32 {
        self.process_with(env::RANK, rank)
    }

    /// The process with this number in its environment.
    pub fn process_with(&self, variable: &str, rank: usize) -> u32 {
        self.find_process(variable, rank).unwrap_or_else(|| panic!("rank {rank} is not running"))
    }

    /// The live process with this number in its environment, if any.
    pub fn find_process(&self, variable: &str, number: usize) -> Option<u32> {
        let mark = format!("{variable}={number}");
        let found = self.processes().into_iter().find(|(_, environment)| environment.lines().any(|line| line == mark));
        found.map(|(process, _)| process)
    }

    /// Sends SIGKILL to all processes of this scene.
    pub fn kill_all(&self) {
        for (process, _) in self.processes() {
            // It may have ended in the meantime.
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).stderr(Stdio::null()).status();
        }
    }

    /// Adds sections to the config.
    pub fn extend_config(&self, text: &str) {
        let path = self.path("cfg.toml");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, config + text).unwrap();
    }

    /// Fails if a process of this scene is alive.
    pub fn assert_nothing_left(&self) {
        processes::assert_none_left(&self.mark());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_logs_fit(self.folder.path());
        }
    }
}

impl Running {
    /// Starts a program whose stderr goes to a file.
    pub fn start(mut command: Command, stderr: PathBuf) -> Self {
        let child = command.stdout(Stdio::null()).stderr(fs::File::create(&stderr).unwrap()).spawn().unwrap();
        Self { child, stderr }
    }

    /// Its stderr so far.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Whether it is still running.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait(self) -> Ended {
        self.wait_for(TIMEOUT)
    }

    /// Waits for the end, at most `timeout`.
    pub fn wait_for(mut self, timeout: Duration) -> Ended {
        let status = processes::wait(&mut self.child, timeout);
        let stderr = fs::read_to_string(&self.stderr).unwrap();
        Ended { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The test has failed. Stop the launcher, which stops its workers.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end.
pub fn finish(command: Command) -> Ended {
    let output = processes::finish(command);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Waits until `condition` holds.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    processes::until(what, TIMEOUT, condition);
}

/// The worker, which Cargo builds for these tests.
pub fn worker_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_fnet-worker"))
}

/// The launcher, which belongs to another package and must already be built.
pub fn launcher() -> PathBuf {
    let path = worker_program().with_file_name("fnet-launch");
    assert!(path.is_file(), "{} does not exist: run `cargo build --release --workspace` first", path.display());
    path
}

/// A program of the Python environment from `make setup`. If it does not exist, the test is skipped.
pub fn python_tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin").join(name);
    if !path.is_file() {
        skip(&format!("{} does not exist", path.display()));
        return None;
    }
    Some(path)
}

/// Says that this test is skipped, and why. The caller returns.
pub fn skip(why: &str) {
    println!("SKIPPED {}: {why}", thread::current().name().unwrap_or("a test"));
}

fn generate(folder: &Path, [images, val_images]: [u32; 2]) {
    let options = fnet_synth::Options {
        out: folder.to_owned(),
        images,
        val_images,
        sides: 96..=128,
        objects: 1..=3,
        empty: 0.0,
        seed: 3,
        ..fnet_synth::Options::default()
    };
    fnet_synth::generate(&options, &|_| {}).unwrap();
}

/// Generated images that no test changes, kept between runs.
fn shared_images(count: [u32; 2]) -> PathBuf {
    let name = format!("blackbox-images-{}-{}-{}", fnet_synth::FORMAT_VERSION, count[0], count[1]);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.insert(folder.clone()) {
        generate(&folder, count);
    }
    folder
}
