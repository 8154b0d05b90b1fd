use std::path::PathBuf;

use clap::CommandFactory;
use proptest::collection::vec;
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
    assert_eq!((before.options.nproc, before.options.max_restarts, before.options.verbosity()), (Some(2), 0, 1));
    let nested = launch("fnet-launch benchmark infer a.toml --gpus 0,2");
    assert_eq!(nested.options.gpus, Some(Gpus::Indices(vec![0, 2])));
    assert_eq!(launch("fnet-launch doctor").options.max_restarts, 3);
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
    assert_eq!((&test.eval, &test.checkpoint), (&vec![Metric::Bbox, Metric::Segm], &PathBuf::from("a.ckpt")));
    let error = test.metrics_to_measure(false).unwrap_err();
    assert!(error.contains("--eval segm") && error.contains("use --eval bbox"), "{error}");
    let default = Test { eval: Vec::new(), ..test };
    assert_eq!(default.metrics_to_measure(true).unwrap(), [Metric::Bbox, Metric::Segm]);
    assert_eq!(default.metrics_to_measure(false).unwrap(), [Metric::Bbox]);
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
fn auto_resume_may_stand_beside_what_a_first_start_needs() {
    let resumes = |line: &str| train(&format!("fnet-launch train {line}")).resumes();
    for line in [
        "cfg.toml --auto-resume",
        "--resume=auto cfg.toml",
        "--resume auto cfg.toml",
        "cfg.toml --auto-resume --resume",
    ] {
        assert_eq!(resumes(line), Some(Resume::Auto(None)), "{line}");
    }
    let first = Some(Resume::Auto(Some("a.pth".into())));
    assert_eq!(resumes("cfg.toml --resume=a.pth --auto-resume"), first);
    assert_eq!(resumes("--auto-resume --resume a.pth cfg.toml"), first);
    assert_eq!(resumes("cfg.toml --resume=./auto"), Some(Resume::From("./auto".into())));
    let both = train("fnet-launch train --resume=auto --load-from m.ckpt cfg.toml");
    assert_eq!((both.resumes(), both.load_from), (Some(Resume::Auto(None)), Some("m.ckpt".into())));
    assert!(refused("fnet-launch train --resume --load-from m.ckpt cfg.toml").contains("--load-from"));
}

#[test]
fn options_of_other_programs_lead_to_the_right_one() {
    for (line, right) in [
        ("train cfg.toml --epochs 24", "use --set train.epochs=12"),
        ("train cfg.toml --batch_size=4", "use --set data.samples_per_gpu=2"),
        ("--num-gpus 8 train cfg.toml", "use --gpus"),
        ("train cfg.toml --resume-from a.pth", "use --resume"),
    ] {
        let error = refused(&format!("fnet-launch {line}"));
        assert!(error.contains(right) && !error.contains("similar"), "{line}: {error}");
    }
    assert!(refused("fnet-launch train cfg.toml --work-dirs a").contains("'--work-dir'"), "the most similar option");
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
fn a_pytorch_file_lacks_its_config() {
    let folder = tempfile::tempdir().unwrap();
    let [pytorch, ours] = ["a.pth", "b.ckpt"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&pytorch, b"PK\x03\x04").unwrap();
    std::fs::write(&ours, b"\x40\0\0\0\0\0\0\0{}").unwrap();
    for (line, expected) in [
        (format!("test {pytorch}"), true),
        (format!("predict {pytorch} a.jpg --out o"), true),
        (format!("test {ours}"), false),
        (format!("test {pytorch} --config c.toml"), false),
        (format!("train c.toml --resume={pytorch}"), false),
    ] {
        let LaunchCommand::Worker(command) = launch(&format!("fnet-launch {line}")).command else { panic!("{line}") };
        assert_eq!(command.lacks_config(), expected, "{line}");
    }
}

#[test]
fn a_line_is_repeated_without_defaults_and_with_changes() {
    let launch =
        launch("fnet-launch train c.toml --gpus 3, --set a=1 b=2 --dry-run --tee 1 --load-from m.pth --fault stop");
    let shown = |line: &CommandLine| {
        let words = launch.line_with(line).into_iter().map(|word| word.into_string().unwrap());
        words.collect::<Vec<_>>().join(" ")
    };
    let expected = "fnet-launch --gpus 3, train --load-from=m.pth --fault=stop --set=a=1 --set=b=2 c.toml";
    assert_eq!(shown(&launch.line), expected);
    let resumed = launch.line.clone().without("load-from").without("set").without("fault").with("resume", "");
    assert_eq!((resumed.name(), shown(&resumed).as_str()), ("train", "fnet-launch --gpus 3, train --resume c.toml"));
}

#[test]
fn images_of_flops_are_padded_and_one_number_is_a_square() {
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
    assert!(error.contains("above 5, the number of warm-up images"), "{error}");
}

/// Commands with some of their options; those without a value in the table take any word.
const COMMANDS: [(&str, &str); 11] = [
    ("train", "work-dir resume seed=7 deterministic=flag fault=kill:rank=1 set"),
    ("train", "load-from allow-partial=flag json=flag auto-resume=flag"),
    ("test", "config eval=bbox eval=segm show-score-thr=0.5 metrics"),
    ("predict", "out config set"),
    ("flops", "shape=5 size-divisor=-1 json=flag"),
    ("export", "config with-optimizer=flag"),
    ("benchmark infer", "fuse-conv-bn=flag max-iter=9 set"),
    ("benchmark data", "threads=3 no-masks=flag"),
    ("check-data", "split=val list=0 decode=flag"),
    ("print-config", "schedule=flag set"),
    ("browse", "out epoch=3 no-augment=flag"),
];

/// Words that users and shells may pass, some of which look like options or their values.
fn word() -> impl Strategy<Value = String> {
    prop_oneof!["[-a-zA-Z0-9_./= ]{1,12}", Just("bbox".to_owned()), Just("--set".to_owned()), Just("a.ckpt".to_owned())]
}

fn parsed(line: Vec<OsString>) -> Result<Launch, TestCaseError> {
    Launch::from_arguments(line).map_err(|error| TestCaseError::fail(error.to_string()))
}

proptest! {
    #[test]
    fn the_words_of_a_line_parse_to_the_same_command(
        (command, options) in proptest::sample::select(COMMANDS.to_vec()),
        chosen in any::<[bool; 6]>(),
        resume_newest in any::<bool>(),
        words in vec(word(), 8),
    ) {
        let mut line: Vec<String> = [vec!["fnet-launch"], command.split(' ').collect()].concat().into_iter().map(str::to_owned).collect();
        for ((option, word), chosen) in options.split(' ').zip(&words).zip(chosen) {
            match option.strip_suffix("=flag") {
                _ if !chosen && option != "out" => {}
                Some(flag) => line.push(format!("--{flag}")),
                None if option == "resume" && resume_newest => line.push("--resume".to_owned()),
                None if option == "set" => line.push(format!("--set=a.b={word}")),
                None if option.contains('=') => line.push(format!("--{option}")),
                None => line.push(format!("--{option}={word}")),
            }
        }
        line.push("--".to_owned());
        let positional = if ["predict", "export"].contains(&command) { 2 } else { 1 };
        line.extend(words[6..][..positional].iter().cloned());
        let given = parsed(line.into_iter().map(OsString::from).collect())?;
        let repeated = parsed([vec!["fnet-launch".into()], given.line.words()].concat())?;
        prop_assert_eq!(&repeated, &given);
    }

    #[test]
    fn the_words_of_options_parse_to_the_same_options(
        gpus in prop_oneof![Just("all"), Just("7"), Just("3,"), Just("0,2,3")],
        master_addr in "[a-z0-9.]{1,20}",
        master_port in any::<u16>(),
        bind in prop_oneof![Just("none"), Just("0-3,8;9"), Just("5")],
    ) {
        let line = format!("fnet-launch --gpus {gpus} doctor --master-addr {master_addr} --master-port {master_port} --bind {bind}");
        let given = launch(&line);
        prop_assert_eq!(parsed(given.line_with(&given.line))?, given);
    }
}
