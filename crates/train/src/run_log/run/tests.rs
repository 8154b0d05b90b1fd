use fnet_config::Config;
use fnet_protocol::outlet;

use super::*;
use crate::run_log::tensorboard::tests::read_back;

fn run(folder: &Path, interval: usize, start_step: u64) -> RunLog {
    let mut config = Config::default();
    config.log.interval = interval;
    config.train.seed = 5;
    let info = RunInfo {
        name: "tiny",
        config: &config,
        environment: vec![],
        start_step,
        start_epoch: start_step / 5,
        total_steps: 20,
    };
    RunLog::create(folder, info).unwrap()
}

fn at(epoch: usize, iter: usize) -> TrainStep {
    let step = ((epoch - 1) * 5 + iter) as u64;
    TrainStep { epoch, iter, iters_per_epoch: 5, step, lr: 1e-4, momentum: 0.9, memory: None }
}

fn epoch(log: &mut RunLog, window: &mut Window, epoch: usize) {
    for iter in 1..=5 {
        window.begin();
        for (name, value) in [("time", 0.5), ("data_time", 0.1), ("loss_cls", iter as f64), ("loss", 2.0 * iter as f64)]
        {
            window.put(name, value);
        }
        window.end(at(epoch, iter));
        log.step(window, &Window::new(2), 0.5);
    }
}

fn lines(log: &RunLog) -> Vec<Value> {
    outlet::flush_all();
    let text = std::fs::read_to_string(log.json_path()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lines_hold_the_means_of_an_interval_with_the_keys_and_order_of_mmdetection() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 2, 0);
    let mut window = Window::new(2);
    epoch(&mut log, &mut window, 1);
    let lines = lines(&log);
    assert_eq!((&lines[0]["seed"], &lines[0]["exp_name"]), (&json!(5), &json!("tiny")));
    let expected = json!({"mode": "train", "epoch": 1, "iter": 4, "lr": 1e-4, "data_time": 0.1, "loss_cls": 3.5, "loss": 7.0, "time": 0.5});
    assert_eq!(lines[2].to_string(), expected.to_string());
    assert_eq!(lines.len(), 3, "the fifth update of the epoch has no line");
    epoch(&mut log, &mut window, 2);
    outlet::flush_all();
    let text = std::fs::read_to_string(log.json_path()).unwrap();
    assert!(
        text.lines().nth(3).unwrap().contains("\"loss_cls\":1.5"),
        "values of the previous epoch are not in the mean"
    );
}

/// A rank 0 that is killed after its evaluation must not take the results with it.
#[test]
fn an_evaluation_is_in_its_file_when_the_next_epoch_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 2, 0);
    for epoch in 1..=20 {
        log.evaluation(epoch, 5, 3, 1e-4, &IndexMap::from([("bbox_mAP".into(), 0.5)]));
        let text = std::fs::read_to_string(log.json_path()).unwrap();
        assert!(text.lines().count() == 1 + epoch && text.ends_with('\n'), "{text}");
    }
}

#[test]
fn an_epoch_shorter_than_the_interval_has_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 50, 0);
    let mut window = Window::new(50);
    epoch(&mut log, &mut window, 1);
    epoch(&mut log, &mut window, 2);
    let lines = lines(&log);
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[2]["epoch"], &lines[2]["iter"], &lines[2]["loss_cls"]), (&json!(2), &json!(5), &json!(3.0)));
}

#[test]
fn the_remaining_time_counts_only_the_updates_of_this_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 5, 10);
    let mut window = Window::new(5);
    epoch(&mut log, &mut window, 3);
    assert_eq!(log.remaining_seconds(15), 2.5);
}

#[test]
fn memory_is_logged_with_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 1, 0);
    let mut window = Window::new(1);
    window.put("loss", 1.0);
    window.end(TrainStep { memory: Some(3210), ..at(1, 1) });
    log.step(&window, &Window::new(2), 0.5);
    assert_eq!(lines(&log)[1]["memory"], json!(3210));
}

#[test]
fn an_evaluation_has_the_names_and_table_rows_of_mmdetection() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 2, 0);
    let results: IndexMap<String, f64> =
        Metric::Bbox.names().into_iter().zip([0.123_456_7, 0.5, 0.25, 0.0, 0.1, -1.0]).collect();
    log.evaluation(1, 5, 12, 4e-4, &results);
    let expected = json!({"mode": "val", "epoch": 1, "iter": 12, "lr": 4e-4, "bbox_mAP": 0.12346, "bbox_mAP_50": 0.5, "bbox_mAP_75": 0.25,
        "bbox_mAP_s": 0.0, "bbox_mAP_m": 0.1, "bbox_mAP_l": -1.0, "bbox_mAP_copypaste": "0.123 0.500 0.250 0.000 0.100 -1.000"});
    assert_eq!(lines(&log)[1].to_string(), expected.to_string());
}

#[test]
fn tensorboard_has_the_tags_and_steps_of_mmdetection() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = run(folder.path(), 2, 0);
    let mut window = Window::new(2);
    epoch(&mut log, &mut window, 1);
    let results: IndexMap<String, f64> =
        Metric::Bbox.names().into_iter().zip([0.5, 0.5, 0.5, -1.0, 0.5, 0.5]).collect();
    log.evaluation(1, 5, 12, 1e-4, &results);
    let board = folder.path().join("tensorboard");
    let Some(read) = read_back(&board) else { return };
    assert_eq!(read["scalars"]["train/loss"], json!([[2, 3.0], [4, 7.0]]));
    assert_eq!(read["scalars"]["val/bbox_mAP_50"], json!([[6, 0.5]]));
    assert!(read["scalars"].get("val/bbox_mAP_s").is_none(), "an undefined metric is left out");
    assert!(read["texts"]["config/text_summary"][0][1].as_str().unwrap().contains("```toml\n[model"));
    let tags: Vec<&String> = read["scalars"].as_object().unwrap().keys().filter(|tag| !tag.contains("mAP")).collect();
    assert_eq!(tags, ["train/loss_cls", "train/loss", "learning_rate", "momentum"]);
    assert_eq!(read["texts"]["val/bbox_mAP_copypaste/text_summary"][0][0], json!(6));
}

#[test]
fn the_resolved_config_is_written_beside_the_logs() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 2, 0);
    let text = std::fs::read_to_string(folder.path().join("config.toml")).unwrap();
    assert_eq!(Config::from_toml(&text, "config.toml").unwrap().train.seed, 5);
}

#[test]
fn a_line_that_no_log_has_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut window = Window::new(2);
    let mut first = run(folder.path(), 2, 0);
    for iter in 1..=4 {
        window.begin();
        window.put("loss", iter as f64);
        window.end(at(1, iter));
        if iter < 4 {
            first.step(&window, &Window::new(2), 0.5);
        }
    }
    let train = |log: &RunLog| lines(log).into_iter().filter(|line| line["mode"] == "train").count();
    assert_eq!(train(&first), 1);
    // Logs are named after the second in which they start.
    let second = folder.path().join("20000101_000000.log.json");
    std::fs::rename(first.json_path(), second).unwrap();
    let mut log = run(folder.path(), 2, 4);
    log.make_up(&window);
    log.make_up(&window);
    assert_eq!(train(&log), 1);
    assert_eq!((&lines(&log)[1]["iter"], &lines(&log)[1]["loss"]), (&json!(4), &json!(3.5)));
}

#[test]
fn curves_of_a_resumed_job_go_on_without_gap_or_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let value = |ap: f64| IndexMap::from([("bbox_mAP".to_owned(), ap)]);
    let ranks = |waited: [f64; 2]| waited.map(|waited| IndexMap::from([("waiting".to_owned(), waited)]));
    let mut log = run(folder.path(), 1, 0);
    let mut window = Window::new(1);
    for number in 1..=2 {
        epoch(&mut log, &mut window, number);
        log.times(number, &ranks([0.5, 3.0]));
        log.evaluation(number, 5 * number as u64, 12, 1e-4, &value(0.1 * number as f64));
    }
    // From the checkpoint of the first epoch, whose evaluation is not repeated.
    let mut log = run(folder.path(), 1, 5);
    log.show_evaluation(5, 1e-4, &value(0.1));
    epoch(&mut log, &mut window, 2);
    log.times(2, &ranks([2.0, 1.0]));
    log.evaluation(2, 10, 12, 1e-4, &value(0.4));
    let board = folder.path().join("tensorboard");
    let Some(read) = read_back(&board) else { return };
    let steps = |read: &Value, tag: &str| -> Vec<u64> {
        read["scalars"][tag].as_array().unwrap().iter().map(|event| event[0].as_u64().unwrap()).collect()
    };
    assert_eq!(steps(&read, "train/loss"), (1..=10).collect::<Vec<_>>());
    assert_eq!(steps(&read, "val/bbox_mAP"), [6, 11]);
    let by_epoch = read_back(&board.join("by_epoch")).unwrap();
    assert_eq!(steps(&by_epoch, "val_by_epoch/bbox_mAP"), [1, 2]);
    let last = |tag: &str| by_epoch["scalars"][tag].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last("straggler/rank"), json!([2, 1.0]), "the second rank waits less");
    assert_eq!(last("straggler/seconds_waited_for_it"), json!([2, 1.0]));
}
