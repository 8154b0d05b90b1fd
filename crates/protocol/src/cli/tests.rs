use std::path::PathBuf;

use clap::CommandFactory;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn launch(line: &str) -> Launch {
    Launch::from_arguments(words(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refused(line: &str) -> String {
    Launch::from_arguments(words(line)).expect_err(line).to_string()
}

fn train(line: &str) -> Train {
    match launch(line).command {
        LaunchCommand::Worker(WorkerCommand::Train(command)) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definitions_are_sound() {
    Launch::command().debug_assert();
    Worker::command().debug_assert();
}

#[test]
fn every_command_has_help_with_an_example() {
    fn check(command: &clap::Command) {
        let leaves: Vec<_> = command.get_subcommands().collect();
        if leaves.is_empty() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
        }
        leaves.into_iter().for_each(check);
    }
    check(&Launch::command());
    check(&Worker::command());
}

#[test]
fn where_flags_stand_before_or_after_the_command() {
    let before = launch("fnet-launch --device cpu --nproc 2 --max-restarts 0 -v train a.toml");
    let after = launch("fnet-launch train a.toml --device cpu --nproc 2 --max-restarts 0 -v");
    assert_eq!(before, after);
    assert_eq!((before.place.nproc, before.place.max_restarts, before.place.verbosity()), (Some(2), 0, 1));
    let nested = launch("fnet-launch benchmark infer a.toml --gpus 0,2");
    assert_eq!(nested.place.gpus, Some(Gpus::Indices(vec![0, 2])));
    assert_eq!(launch("fnet-launch doctor").place.max_restarts, 3);
}

#[test]
fn overrides_take_several_values_and_never_the_config() {
    for line in [
        "fnet-launch train --set a.b=1 c=[1,2] cfg.toml",
        "fnet-launch train cfg.toml --cfg-options a.b=1 --set c=[1,2]",
        "fnet-launch train --set=a.b=1 c=[1,2] -- cfg.toml",
    ] {
        let command = train(line);
        assert_eq!(command.set, ["a.b=1", "c=[1,2]"], "{line}");
        assert_eq!(command.config, PathBuf::from("cfg.toml"));
    }
    assert!(refused("fnet-launch train --set cfg.toml").contains("KEY=VALUE"));
    assert!(refused("fnet-launch train cfg.toml --set =1").contains("KEY=VALUE"));
}

#[test]
fn eval_takes_its_known_words_only() {
    let LaunchCommand::Worker(WorkerCommand::Test(test)) =
        launch("fnet-launch test --eval bbox segm a.ckpt --gpus 1").command
    else {
        panic!("another command")
    };
    assert_eq!((test.eval, test.checkpoint), (vec![Metric::Bbox, Metric::Segm], PathBuf::from("a.ckpt")));
    assert!(refused("fnet-launch test a.ckpt --eval").contains("--eval"));
    assert!(refused("fnet-launch test a.ckpt --eval=keypoints").contains("keypoints"));
    assert!(refused("fnet-launch test --eval proposal_fast a.ckpt").contains("bbox, segm, proposal"));
}

#[test]
fn resume_takes_a_checkpoint_and_never_the_config() {
    assert_eq!(train("fnet-launch train --resume cfg.toml").resume, Some(Resume::Newest));
    assert_eq!(train("fnet-launch train cfg.toml --resume --seed 1").resume, Some(Resume::Newest));
    for line in ["--resume=epoch_3.ckpt cfg.toml", "--resume epoch_3.ckpt cfg.toml", "cfg.toml --resume epoch_3.ckpt"] {
        let command = train(&format!("fnet-launch train {line}"));
        assert_eq!(command.resume, Some(Resume::From("epoch_3.ckpt".into())), "{line}");
        assert_eq!(command.config, PathBuf::from("cfg.toml"));
    }
    assert_eq!(train("fnet-launch train cfg.toml --resume a/b.pth").resume, Some(Resume::From("a/b.pth".into())));
    assert_eq!(train("fnet-launch train cfg.toml --resume=odd").resume, Some(Resume::From("odd".into())));
    assert_eq!(train("fnet-launch train cfg.toml").resume, None);
    assert!(refused("fnet-launch train --resume a.pth b.pth cfg.toml").contains("cfg.toml"));
}

#[test]
fn a_number_of_gpus_is_a_count_and_a_comma_makes_a_list() {
    assert_eq!("8".parse(), Ok(Gpus::Count(8)));
    assert_eq!("3,".parse(), Ok(Gpus::Indices(vec![3])));
    assert_eq!("all".parse(), Ok(Gpus::All));
    for wrong in ["", "0", "-1", "a", ",", "0,,1", "1,1"] {
        assert!(wrong.parse::<Gpus>().is_err(), "{wrong:?}");
    }
    assert_eq!(Gpus::Indices(vec![3]).to_string(), "3,");
}

#[test]
fn commands_that_are_not_there_are_not_offered() {
    let help = Launch::command().render_long_help().to_string();
    assert!(!help.contains("report"));
}

#[test]
fn a_pytorch_file_lacks_its_config() {
    let folder = tempfile::tempdir().unwrap();
    let [pytorch, ours] = ["a.pth", "b.ckpt"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&pytorch, b"PK\x03\x04").unwrap();
    std::fs::write(&ours, b"\x40\0\0\0\0\0\0\0{}").unwrap();
    let missing = |line: &str| match launch(&format!("fnet-launch {line}")).command {
        LaunchCommand::Worker(command) => command.with_missing_config().map(|command| command.to_args()),
        other => panic!("{other:?}"),
    };
    let expected = [&["test", "--config=CONFIG.toml", "--show-score-thr=0.3"][..], &[&pytorch]].concat();
    assert_eq!(missing(&format!("test {pytorch}")), Some(expected.into_iter().map(OsString::from).collect()));
    assert!(missing(&format!("predict {pytorch} a.jpg --out o")).is_some());
    for line in
        [format!("test {ours}"), format!("test {pytorch} --config c.toml"), format!("train c.toml --resume={pytorch}")]
    {
        assert_eq!(missing(&line), None, "{line}");
    }
}

fn path() -> impl Strategy<Value = PathBuf> {
    "[-a-zA-Z0-9_./= ]{1,12}".prop_map(PathBuf::from)
}

fn overrides() -> impl Strategy<Value = Vec<String>> {
    vec("[a-z.]{1,8}=[-a-z0-9=\\[\\], \"]{0,8}", 0..4)
}

fn resume() -> impl Strategy<Value = Option<Resume>> {
    prop_oneof![Just(None), Just(Some(Resume::Newest)), path().prop_map(|path| Some(Resume::From(path)))]
}

fn train_command() -> impl Strategy<Value = WorkerCommand> {
    let fault = prop_oneof![Just("kill:rank=1,step=3,phase=backward"), Just("sleep:attempt=any")];
    let faults = vec(fault.prop_map(|text| text.parse().unwrap()), 0..2);
    (path(), of(path()), resume(), of(path()), of(any::<u64>()), any::<[bool; 5]>(), faults, overrides()).prop_map(
        |(config, work_dir, resume, load_from, seed, flags, fault, set)| {
            let load_from = load_from.filter(|_| resume.is_none());
            let [deterministic, no_validate, auto_scale_lr, allow_partial, json] = flags;
            WorkerCommand::Train(Train {
                config,
                work_dir,
                resume,
                load_from,
                seed,
                deterministic,
                no_validate,
                auto_scale_lr,
                allow_partial,
                fault,
                json,
                set,
            })
        },
    )
}

fn test_command() -> impl Strategy<Value = WorkerCommand> {
    let metric = prop_oneof![Just(Metric::Bbox), Just(Metric::Segm), Just(Metric::Proposal)];
    let paths = (path(), of(path()), of(path()), of(path()), of(path()));
    (paths, vec(metric, 0..3), any::<[bool; 4]>(), 0.0..1.0_f64, overrides()).prop_map(
        |((checkpoint, config, out, show_dir, metrics), eval, flags, show_score_thr, set)| {
            let [format_only, fuse_conv_bn, allow_partial, json] = flags;
            let format_only = format_only && eval.is_empty();
            WorkerCommand::Test(Test {
                checkpoint,
                config,
                eval,
                out,
                format_only,
                show_dir,
                show_score_thr,
                fuse_conv_bn,
                metrics,
                allow_partial,
                json,
                set,
            })
        },
    )
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![]), vec(1..5000_usize, 2)]
}

fn other_command() -> impl Strategy<Value = WorkerCommand> {
    let flops = (path(), vec(1..5000_usize, 0..=2), -1..99_i64, any::<bool>(), overrides()).prop_map(
        |(config, shape, size_divisor, json, set)| {
            WorkerCommand::Flops(Flops { config, shape, size_divisor, json, set })
        },
    );
    let print = (path(), overrides()).prop_map(|(config, set)| WorkerCommand::PrintConfig(PrintConfig { config, set }));
    let predict = (path(), vec(path(), 1..4), path(), of(path()), 0.0..1.0_f64, any::<bool>(), overrides()).prop_map(
        |(checkpoint, images, out, config, score_thr, allow_partial, set)| {
            WorkerCommand::Predict(Predict { checkpoint, images, out, config, score_thr, allow_partial, set })
        },
    );
    let train = (path(), of(1..99_usize), shape(), 1..99_usize, any::<bool>(), overrides()).prop_map(
        |(config, batch, shape, iters, json, set)| {
            let what = BenchmarkCommand::Train(BenchmarkTrain { config, batch, shape, iters, json, set });
            WorkerCommand::Benchmark(Benchmark { what })
        },
    );
    let infer = (path(), of(path()), any::<[bool; 3]>(), shape(), any::<[u8; 3]>(), overrides()).prop_map(
        |(config, checkpoint, [fuse_conv_bn, json, allow_partial], shape, numbers, set)| {
            let [max_iter, log_interval, repeat_num] = numbers.map(|number| usize::from(number) + 1);
            let max_iter = max_iter + WARM_UP;
            let what = BenchmarkCommand::Infer(BenchmarkInfer {
                config,
                checkpoint,
                fuse_conv_bn,
                shape,
                max_iter,
                log_interval,
                repeat_num,
                json,
                allow_partial,
                set,
            });
            WorkerCommand::Benchmark(Benchmark { what })
        },
    );
    let data = (path(), 1..99_usize, of(1..99_usize), any::<[bool; 2]>(), overrides()).prop_map(
        |(config, threads, images, [no_masks, json], set)| {
            let what = BenchmarkCommand::Data(BenchmarkData { config, threads, images, no_masks, json, set });
            WorkerCommand::Benchmark(Benchmark { what })
        },
    );
    let comm = (4..1_u64 << 36, 4..1_u64 << 36, 1..99_usize, 0..99_usize, any::<bool>()).prop_map(
        |(min_bytes, max_bytes, iters, warm_up, json)| {
            let what = BenchmarkCommand::Comm(BenchmarkComm { min_bytes, max_bytes, iters, warm_up, json });
            WorkerCommand::Benchmark(Benchmark { what })
        },
    );
    let start = (1..99_usize, of(path()), any::<[bool; 2]>()).prop_map(|(repeat, against, [json, once])| {
        let what = BenchmarkCommand::Launch(BenchmarkLaunch { repeat, against, json, once });
        WorkerCommand::Benchmark(Benchmark { what })
    });
    let export = (path(), path(), any::<bool>(), of(path())).prop_map(|(checkpoint, out, with_optimizer, config)| {
        WorkerCommand::Export(Export { checkpoint, out, with_optimizer, config })
    });
    let check = (path(), of(any::<bool>()), any::<[bool; 2]>(), 0..99_usize, overrides()).prop_map(
        |(config, split, [decode, json], list, set)| {
            let split = split.map(|train| if train { SplitName::Train } else { SplitName::Val });
            WorkerCommand::CheckData(CheckData { config, split, decode, list, json, set })
        },
    );
    let split = prop_oneof![Just(SplitName::Train), Just(SplitName::Val)];
    let browse = (path(), path(), split, 1..999_usize, 1..99_u64, any::<bool>(), overrides()).prop_map(
        |(config, out, split, max, epoch, no_augment, set)| {
            WorkerCommand::Browse(Browse { config, out, split, max, epoch, no_augment, set })
        },
    );
    prop_oneof![flops, check, print, predict, train, infer, data, comm, start, export, browse]
}

#[test]
fn pictures_of_flops_are_padded_and_one_number_is_a_square() {
    let shape = |line: &str| match Worker::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().command
    {
        WorkerCommand::Flops(flops) => {
            let (given, padded) = (flops.shape(), flops.padded_shape());
            [given.height, given.width, padded.height, padded.width]
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(shape("fnet-worker flops c.toml"), [1280, 800, 1280, 800]);
    assert_eq!(shape("fnet-worker flops c.toml --shape 801 1281"), [801, 1281, 832, 1312]);
    assert_eq!(shape("fnet-worker flops --shape 5 --json c.toml"), [5, 5, 32, 32]);
    assert_eq!(shape("fnet-worker flops c.toml --shape 50 70 --size-divisor 64"), [50, 70, 64, 128]);
    assert_eq!(shape("fnet-worker flops c.toml --shape 50 70 --size-divisor -1"), [50, 70, 50, 70]);
}

#[test]
fn a_benchmark_goes_on_after_the_warm_up() {
    let parse = |line: &str| Worker::from_arguments(line.split_whitespace().map(OsString::from));
    assert!(parse("fnet-worker benchmark infer c.toml --max-iter 6").is_ok());
    let error = parse("fnet-worker benchmark infer c.toml --max-iter 5").unwrap_err().to_string();
    assert!(error.contains("above 5, the pictures of the warm-up"), "{error}");
}

proptest! {
    #[test]
    fn the_arguments_of_a_command_parse_to_the_command(
        command in prop_oneof![train_command(), test_command(), other_command()]
    ) {
        let arguments = std::iter::once(OsString::from("fnet-worker")).chain(command.to_args());
        let parsed = Worker::from_arguments(arguments).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(parsed.command, command);
    }

    #[test]
    fn where_flags_parse_to_the_same_place(
        gpus in prop_oneof![
            Just(Gpus::All),
            (1..99_usize).prop_map(Gpus::Count),
            proptest::sample::subsequence((0..16).collect::<Vec<usize>>(), 1..8).prop_map(Gpus::Indices),
        ],
        nnodes in of(1..99_usize),
        node_rank in of(0..99_usize),
        master_addr in of("[a-z0-9.]{1,20}"),
        master_port in of(any::<u16>()),
        bind in prop_oneof![
            Just(Bind::Auto),
            Just(Bind::None),
            vec(proptest::collection::btree_set(0..99_usize, 1..9), 1..4)
                .prop_map(|lists| Bind::Lists(lists.into_iter().map(CpuList::from_iter).collect())),
        ],
    ) {
        let place = Place { gpus: Some(gpus), nnodes, node_rank, master_addr, master_port, bind, ..launch("fnet-launch doctor").place };
        let arguments = std::iter::once("fnet-launch".into()).chain(place.to_args()).chain(["doctor".into()]);
        let parsed = Launch::from_arguments(arguments).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(parsed.place, place);
    }
}
