//! A status in the text format of Prometheus, for node_exporter's textfile collector.

use std::fmt::Write;

use super::JobStatus;

/// The labels of a sample besides `work_dir`, and its value.
type Sample = (Vec<(&'static str, String)>, f64);

struct MetricsText<'a> {
    work_dir: &'a str,
    text: String,
}

impl MetricsText<'_> {
    /// A metric with its samples; nothing if there are none.
    fn add(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        let samples: Vec<Sample> = samples.into_iter().filter(|(_, value)| value.is_finite()).collect();
        if samples.is_empty() {
            return;
        }
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP fnet_{name} {help}\n# TYPE fnet_{name} {kind}");
        for (labels, value) in samples {
            let own = [("work_dir", self.work_dir.to_owned())];
            let labels: Vec<String> = own
                .into_iter()
                .chain(labels)
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(&value)))
                .collect();
            let _ = writeln!(self.text, "fnet_{name}{{{}}} {value}", labels.join(","));
        }
    }

    /// A metric that is one number, if it is known.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Into<Option<f64>>) {
        self.add(name, kind, help, value.into().map(|value| (Vec::new(), value)));
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The metrics of a job.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
pub fn text(status: &JobStatus) -> String {
    let work_dir = status.work_dir.to_string_lossy();
    let mut metrics = MetricsText { work_dir: &work_dir, text: String::new() };
    let named = |label: &'static str, name: &str, value: f64| (vec![(label, name.to_owned())], value);
    let end = status.end.as_ref();
    let info = vec![("version", status.version.clone()), ("host", status.host.clone())];
    metrics.add("job_info", "gauge", "The job, by its labels.", [(info, 1.0)]);
    metrics.one("job_running", "gauge", "1 until the job has ended.", f64::from(u8::from(end.is_none())));
    metrics.one(
        "job_exit_code",
        "gauge",
        "Exit code of a job that has ended.",
        end.map(|end| f64::from(end.exit_code)),
    );
    metrics.one("job_start_time_seconds", "gauge", "When the launcher started, in seconds since 1970.", status.started);
    metrics.one("job_updated_time_seconds", "gauge", "When these numbers were written.", status.updated);
    metrics.one("restarts_total", "counter", "Restarts after failures.", status.restarts.len() as f64);
    metrics.one("lost_seconds_total", "counter", "Seconds without progress because of failures.", status.lost_seconds);
    metrics.one("workers", "gauge", "Workers of the job.", status.world_size as f64);
    if let Some(step) = &status.training {
        metrics.one("epoch", "gauge", "Current epoch, from 1.", step.epoch as f64);
        metrics.one("epochs", "gauge", "Epochs of the job.", step.epochs as f64);
        metrics.one("steps_done", "gauge", "Completed training steps of the job.", step.step as f64);
        metrics.one("steps", "gauge", "Training steps of the job.", step.total_steps as f64);
        let losses = step.losses.iter().filter_map(|(name, value)| Some(named("name", name, value.as_f64()?)));
        metrics.add("loss", "gauge", "Losses of the last step, by their names in the log.", losses);
        metrics.one("learning_rate", "gauge", "Learning rate of the last step.", step.learning_rate);
        metrics.one("images_per_second", "gauge", "Training images per second of the job.", step.images_per_second);
        metrics.one("remaining_seconds", "gauge", "Estimated time to the end of training.", step.eta_seconds);
    }
    if let Some(images) = &status.evaluating {
        metrics.one("evaluation_images_done", "gauge", "Images of the evaluation in progress.", images.step as f64);
        metrics.one("evaluation_images", "gauge", "Images of a whole evaluation.", images.total_steps as f64);
    }
    if let Some(evaluation) = &status.evaluation {
        let known = evaluation.metrics.iter().filter_map(|(name, value)| Some(named("name", name, value.as_f64()?)));
        metrics.add("metric", "gauge", "Metrics of the last evaluation, by their names in the log.", known);
        metrics.one("metric_epoch", "gauge", "Epoch of the last evaluation.", evaluation.epoch as f64);
    }
    if let Some(checkpoint) = &status.checkpoint {
        metrics.one("checkpoint_step", "gauge", "Steps in the newest checkpoint of this job.", checkpoint.step as f64);
        metrics.one("checkpoint_time_seconds", "gauge", "When it was written.", checkpoint.at);
    }
    let ranks = |value: &dyn Fn(&super::RankState) -> Option<f64>| -> Vec<Sample> {
        status.ranks.iter().filter_map(|rank| Some(named("rank", &rank.rank.to_string(), value(rank)?))).collect()
    };
    metrics.add("rank_up", "gauge", "1 for a rank that has not exited.", ranks(&|_| Some(1.0)));
    let idle = ranks(&|rank| rank.status.as_ref().map(|status| status.idle_seconds));
    metrics.add("rank_idle_seconds", "gauge", "Time since the rank last made progress.", idle);
    let memory = ranks(&|rank| rank.usage.memory_bytes.map(|bytes| bytes as f64));
    metrics.add("rank_memory_bytes", "gauge", "Resident memory of the rank's process.", memory);
    let peak = ranks(&|rank| rank.usage.peak_memory_bytes.map(|bytes| bytes as f64));
    metrics.add("rank_peak_memory_bytes", "gauge", "Peak memory on the rank's GPU, or of its process.", peak);
    let waits = ranks(&|rank| rank.usage.wait_seconds);
    metrics.add("rank_wait_seconds", "gauge", "Part of a step in which the rank waits for others.", waits);
    let gpus = |value: &dyn Fn(&super::GpuUse) -> Option<f64>| -> Vec<Sample> {
        let labels = |gpu: &super::GpuUse| vec![("rank", gpu.rank.to_string()), ("gpu", gpu.device.clone())];
        status.gpus.iter().filter_map(|gpu| Some((labels(gpu), value(gpu)?))).collect()
    };
    let busy = gpus(&|gpu| Some(f64::from(gpu.busy_percent?) / 100.0));
    metrics.add("gpu_busy_ratio", "gauge", "Part of the time in which kernels ran on the GPU.", busy);
    let used = gpus(&|gpu| Some(gpu.memory_used_bytes as f64));
    metrics.add("gpu_memory_used_bytes", "gauge", "Memory of the GPU that all programs use.", used);
    let total = gpus(&|gpu| Some(gpu.memory_total_bytes as f64));
    metrics.add("gpu_memory_bytes", "gauge", "Memory of the GPU.", total);
    metrics.text
}
