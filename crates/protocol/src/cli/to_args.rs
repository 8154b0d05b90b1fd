//! The inverse of parsing: the arguments that give a command again.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::rewrite::{RESUME, is_value};
use super::{
    BenchmarkComm, BenchmarkCommand, BenchmarkData, BenchmarkInfer, BenchmarkLaunch, BenchmarkTrain, Bind, Browse,
    CheckData, Export, Flops, Place, Predict, PrintConfig, Resume, Test, Train, WorkerCommand,
};

/// Collects arguments. Values are joined to their options, so that no value is taken for an option.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn new(words: &[&str]) -> Self {
        Self(words.iter().map(OsString::from).collect())
    }

    fn flag(&mut self, name: &str, given: bool) -> &mut Self {
        if given {
            self.0.push(name.into());
        }
        self
    }

    fn value(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        let mut whole = OsString::from(name);
        whole.push("=");
        whole.push(value);
        self.0.push(whole);
        self
    }

    fn path(&mut self, name: &str, path: Option<&PathBuf>) -> &mut Self {
        if let Some(path) = path {
            self.value(name, path);
        }
        self
    }

    fn number<T: ToString>(&mut self, name: &str, number: Option<T>) -> &mut Self {
        if let Some(number) = number {
            self.value(name, number.to_string());
        }
        self
    }

    fn each<T: ToString>(&mut self, name: &str, values: &[T]) -> &mut Self {
        for value in values {
            self.value(name, value.to_string());
        }
        self
    }

    fn set(&mut self, overrides: &[String]) -> &mut Self {
        for text in overrides {
            self.value("--set", text);
        }
        self
    }

    fn shape(&mut self, shape: &[usize]) -> &mut Self {
        if !shape.is_empty() {
            self.0.push("--shape".into());
            self.0.extend(shape.iter().map(|side| side.to_string().into()));
        }
        self
    }

    /// Positional arguments come last, after `--` if one could be taken for an option or a value of one.
    fn positional<'a>(&mut self, paths: impl IntoIterator<Item = &'a Path>) -> Vec<OsString> {
        let paths: Vec<_> = paths.into_iter().collect();
        let last = self.0.last().map(|last| last.to_string_lossy().into_owned()).unwrap_or_default();
        let is_unclear = |path: &Path| {
            let text = path.to_string_lossy();
            text.starts_with('-') || ["--set", "--eval"].iter().any(|option| is_value(option, &text))
                // Only here an option may stand without a value right before.
                || (last == RESUME && is_value(RESUME, &text))
        };
        if paths.iter().copied().any(is_unclear) {
            self.0.push("--".into());
        }
        self.0.extend(paths.into_iter().map(OsString::from));
        std::mem::take(&mut self.0)
    }
}

impl WorkerCommand {
    /// The arguments, without the program's name, that parse to this command.
    pub fn to_args(&self) -> Vec<OsString> {
        match self {
            WorkerCommand::Train(command) => command.to_args(),
            WorkerCommand::Test(command) => command.to_args(),
            WorkerCommand::Predict(command) => command.to_args(),
            WorkerCommand::Flops(command) => command.to_args(),
            WorkerCommand::Benchmark(command) => match &command.what {
                BenchmarkCommand::Infer(command) => command.to_args(),
                BenchmarkCommand::Train(command) => command.to_args(),
                BenchmarkCommand::Data(command) => command.to_args(),
                BenchmarkCommand::Comm(command) => command.to_args(),
                BenchmarkCommand::Launch(command) => command.to_args(),
            },
            WorkerCommand::CheckData(command) => command.to_args(),
            WorkerCommand::PrintConfig(command) => command.to_args(),
            WorkerCommand::Export(command) => command.to_args(),
            WorkerCommand::Browse(command) => command.to_args(),
        }
    }
}

impl Train {
    /// The arguments, with `train`, that parse to this command.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut arguments = Arguments::new(&["train"]);
        match &self.resume {
            None => {}
            Some(Resume::Newest) => arguments.0.push("--resume".into()),
            Some(Resume::From(path)) => {
                arguments.value("--resume", path);
            }
        }
        arguments
            .path("--work-dir", self.work_dir.as_ref())
            .path("--load-from", self.load_from.as_ref())
            .number("--seed", self.seed)
            .flag("--deterministic", self.deterministic)
            .flag("--no-validate", self.no_validate)
            .flag("--auto-scale-lr", self.auto_scale_lr)
            .flag("--allow-partial", self.allow_partial)
            .each("--fault", &self.fault)
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl Test {
    fn to_args(&self) -> Vec<OsString> {
        let mut arguments = Arguments::new(&["test"]);
        for metric in &self.eval {
            arguments.value("--eval", metric.name());
        }
        arguments
            .path("--config", self.config.as_ref())
            .path("--out", self.out.as_ref())
            .flag("--format-only", self.format_only)
            .path("--show-dir", self.show_dir.as_ref())
            .number("--show-score-thr", Some(self.show_score_thr))
            .flag("--fuse-conv-bn", self.fuse_conv_bn)
            .path("--metrics", self.metrics.as_ref())
            .flag("--allow-partial", self.allow_partial)
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.checkpoint.as_path()])
    }
}

impl Predict {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["predict"])
            .value("--out", &self.out)
            .path("--config", self.config.as_ref())
            .number("--score-thr", Some(self.score_thr))
            .flag("--allow-partial", self.allow_partial)
            .set(&self.set)
            .positional(std::iter::once(self.checkpoint.as_path()).chain(self.images.iter().map(PathBuf::as_path)))
    }
}

impl Flops {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["flops"])
            .shape(&self.shape)
            .number("--size-divisor", Some(self.size_divisor))
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl BenchmarkInfer {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["benchmark", "infer"])
            .flag("--fuse-conv-bn", self.fuse_conv_bn)
            .shape(&self.shape)
            .number("--max-iter", Some(self.max_iter))
            .number("--log-interval", Some(self.log_interval))
            .number("--repeat-num", Some(self.repeat_num))
            .flag("--json", self.json)
            .flag("--allow-partial", self.allow_partial)
            .set(&self.set)
            .positional(std::iter::once(self.config.as_path()).chain(self.checkpoint.as_deref()))
    }
}

impl BenchmarkTrain {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["benchmark", "train"])
            .number("--batch", self.batch)
            .shape(&self.shape)
            .number("--iters", Some(self.iters))
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl BenchmarkData {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["benchmark", "data"])
            .number("--threads", Some(self.threads))
            .number("--images", self.images)
            .flag("--no-masks", self.no_masks)
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl BenchmarkComm {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["benchmark", "comm"])
            .number("--min-bytes", Some(self.min_bytes))
            .number("--max-bytes", Some(self.max_bytes))
            .number("--iters", Some(self.iters))
            .number("--warm-up", Some(self.warm_up))
            .flag("--json", self.json)
            .positional([])
    }
}

impl BenchmarkLaunch {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["benchmark", "launch"])
            .number("--repeat", Some(self.repeat))
            .path("--against", self.against.as_ref())
            .flag("--json", self.json)
            .flag("--once", self.once)
            .positional([])
    }
}

impl Browse {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["browse"])
            .value("--out", &self.out)
            .value("--split", self.split.name())
            .number("--max", Some(self.max))
            .number("--epoch", Some(self.epoch))
            .flag("--no-augment", self.no_augment)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl CheckData {
    fn to_args(&self) -> Vec<OsString> {
        let mut arguments = Arguments::new(&["check-data"]);
        if let Some(split) = self.split {
            arguments.value("--split", split.name());
        }
        arguments
            .flag("--decode", self.decode)
            .number("--list", Some(self.list))
            .flag("--json", self.json)
            .set(&self.set)
            .positional([self.config.as_path()])
    }
}

impl PrintConfig {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["print-config"]).set(&self.set).positional([self.config.as_path()])
    }
}

impl Export {
    fn to_args(&self) -> Vec<OsString> {
        Arguments::new(&["export"])
            .flag("--with-optimizer", self.with_optimizer)
            .path("--config", self.config.as_ref())
            .positional([self.checkpoint.as_path(), self.out.as_path()])
    }
}

impl Place {
    /// The flags that say where to run (not how to supervise or print), for a line that users can run again.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut arguments = Arguments::new(&[]);
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                arguments.0.push(name.into());
                arguments.0.push(value.into());
            }
        };
        option("--gpus", self.gpus.as_ref().map(ToString::to_string));
        option("--device", self.device.map(|device| device.name().to_owned()));
        option("--nproc", self.nproc.map(|number| number.to_string()));
        option("--nnodes", self.nnodes.map(|number| number.to_string()));
        option("--node-rank", self.node_rank.map(|number| number.to_string()));
        option("--master-addr", self.master_addr.clone());
        option("--master-port", self.master_port.map(|number| number.to_string()));
        option("--iface", self.iface.clone());
        option("--bind", (self.bind != Bind::Auto).then(|| self.bind.to_string()));
        arguments.0
    }
}
