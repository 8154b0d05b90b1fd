//! How long a job takes on many GPUs: the model of docs/scaling.md, whose tables come from here.
#![expect(clippy::cast_precision_loss, reason = "a few digits are shown")]

use std::fmt;

use serde::Serialize;

/// Part of a step that is its backward pass, which hides sums of gradients.
const BACKWARD: f64 = 2.0 / 3.0;
/// Standard deviation of the ranks' steps, as a part of a step: their images differ.
const SPREAD: f64 = 0.03;
/// Bytes of the small messages of a step: the ranks' votes and losses.
const VOTE: f64 = 1024.0;
/// Bytes of the reducer's buckets: of all, and of the one that is filled last.
const BUCKET: [f64; 2] = [(25 << 20) as f64, (1 << 20) as f64];
/// Seconds in which rank 0 compares the detections of an image with its objects.
const METRICS: f64 = 1e-3;
/// Bytes per second that rank 0 copies to the host for a checkpoint, while training pauses.
const COPY: f64 = 5e9;

/// What connects the ranks.
#[derive(Debug, Clone, Copy)]
pub struct Links {
    /// Bytes per second of an all-reduce within a node and between nodes, as the "bus bandwidth" of `benchmark comm`.
    pub bandwidth: [f64; 2],
    /// Seconds of a hop within a node and between nodes.
    pub hop: [f64; 2],
    /// Seconds of any all-reduce.
    pub start: f64,
    /// Whether sums may go over trees in place of a ring.
    pub trees: bool,
    /// Whether the workers' own cores add and copy, as with Gloo: nothing hides what that takes, and `bandwidth` within a node
    /// is what they reach.
    pub by_cores: bool,
}

impl Links {
    /// NCCL on eight NVLink 4 GPUs with a network card of 400 Gbit/s each.
    pub const NCCL: Self =
        Self { bandwidth: [370e9, 360e9], hop: [4e-6, 14e-6], start: 8.4e-6, trees: true, by_cores: false };
    /// Gloo on one machine, and over 10 Gbit/s.
    pub const GLOO: Self =
        Self { bandwidth: [1e9, 1.1e9], hop: [1e-4, 1e-4], start: 1e-4, trees: false, by_cores: true };

    /// Seconds of an all-reduce of `bytes` between `nodes` of `per_node` ranks.
    pub fn all_reduce(&self, bytes: f64, nodes: usize, per_node: usize) -> f64 {
        let ranks = (nodes * per_node) as f64;
        if ranks < 2.0 {
            return 0.0;
        }
        let [within, between] = self.bandwidth;
        let bandwidth = match (nodes, per_node) {
            (1, _) => within,
            (_, 1) => between,
            _ => within.min(between),
        };
        let inside = (per_node - 1) as f64 * self.hop[0];
        let outside = if nodes > 1 { self.hop[1] } else { 0.0 };
        let around = around(ranks);
        let ring = 2.0 * around * nodes as f64 * (inside + outside);
        let tree = 2.0 * (inside + (nodes as f64).log2().ceil() * outside);
        let hops = if self.trees { ring.min(tree) } else { ring };
        self.start + hops + 2.0 * around * bytes / bandwidth
    }
}

/// The part of a message that each of the ranks sends, or adds to what comes, in half of an all-reduce.
fn around(ranks: f64) -> f64 {
    (ranks - 1.0) / ranks
}

/// A training job.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub nodes: usize,
    pub per_node: usize,
    /// Seconds of a step of one worker alone.
    pub step: f64,
    /// Images per worker and step.
    pub images: usize,
    /// Steps per update.
    pub accumulate: usize,
    /// Bytes of a worker's gradients in float32.
    pub gradients: f64,
    /// Whether they travel as bfloat16.
    pub as_bfloat16: bool,
    /// Steps of a worker per epoch, and epochs.
    pub steps: usize,
    pub epochs: usize,
    /// Images of the validation set.
    pub evaluated: usize,
    /// Bytes of a checkpoint.
    pub checkpoint: f64,
}

/// Seconds of an update of the weights and its parts, and what follows.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Forecast {
    update_seconds: f64,
    compute_seconds: f64,
    /// Waiting for the slowest rank.
    slowest_rank_seconds: f64,
    /// Sums that the backward pass does not hide, and the exchange of votes.
    exposed_communication_seconds: f64,
    /// All sums of an update, hidden or not.
    communication_seconds: f64,
    images_per_second: f64,
    /// Images per second by that of as many workers that need not wait.
    efficiency: f64,
    epoch_seconds: f64,
    /// Parts of `epoch_seconds`.
    evaluation_seconds: f64,
    checkpoint_seconds: f64,
    job_seconds: f64,
}

impl Job {
    pub fn forecast(&self, links: &Links) -> Forecast {
        let ranks = (self.nodes * self.per_node) as f64;
        let all_reduce = |bytes: f64| links.all_reduce(bytes, self.nodes, self.per_node);
        let [compute, backward] = [self.step * self.accumulate as f64, self.step * BACKWARD];
        let sent = if self.as_bfloat16 { 0.5 } else { 1.0 };
        // Values of bfloat16 take the cores as long as those of float32.
        let cores = if links.by_cores { 2.0 * around(ranks) * self.gradients / links.bandwidth[0] } else { 0.0 };
        let (mut end, mut communication, mut filled) = (0.0f64, 0.0, 0.0);
        while filled < self.gradients {
            let left = self.gradients - filled;
            let bytes = if left > BUCKET[1] { BUCKET[0].min(left - BUCKET[1]) } else { left };
            filled += bytes;
            let seconds = all_reduce(bytes * sent);
            communication += seconds;
            // Gradients are taken to be computed evenly over the backward pass; sums follow one another.
            end = end.max((backward + cores) * filled / self.gradients) + seconds;
        }
        let vote = all_reduce(VOTE);
        let exposed = if ranks > 1.0 { end - backward + vote } else { 0.0 };
        // The expected maximum of as many normal values; those of an update's steps even out.
        let slowest = SPREAD * self.step * (self.accumulate as f64).sqrt() * (2.0 * ranks.ln()).sqrt();
        let update = compute + slowest + exposed;
        let images = ranks * (self.images * self.accumulate) as f64;
        let evaluation = self.evaluated as f64 * (self.step * (1.0 - BACKWARD) / self.images as f64 / ranks + METRICS);
        let checkpoint = self.checkpoint / COPY;
        let epoch = update * self.steps as f64 / self.accumulate as f64 + evaluation + checkpoint;
        Forecast {
            update_seconds: update,
            compute_seconds: compute,
            slowest_rank_seconds: slowest,
            exposed_communication_seconds: exposed,
            communication_seconds: communication + vote,
            images_per_second: images / update,
            efficiency: compute / update,
            epoch_seconds: epoch,
            evaluation_seconds: evaluation,
            checkpoint_seconds: checkpoint,
            job_seconds: epoch * self.epochs as f64,
        }
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = crate::text::clock;
        write!(
            f,
            "{:.3} s per update: compute {:.3}, waiting for the slowest worker {:.3}, communication {:.3}, of which {:.3} are \
             not hidden; {:.1} images/s, {:.0} % of what {:.3} s allow; epoch {}, of that evaluation {} and checkpoint {:.1} s; \
             job {}",
            self.update_seconds,
            self.compute_seconds,
            self.slowest_rank_seconds,
            self.communication_seconds,
            self.exposed_communication_seconds,
            self.images_per_second,
            100.0 * self.efficiency,
            self.compute_seconds,
            clock(self.epoch_seconds),
            clock(self.evaluation_seconds),
            self.checkpoint_seconds,
            clock(self.job_seconds)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FasterNet-S on COCO with `per_node` GPUs in each node, at a step time that is an assumption.
    fn job(nodes: usize) -> Job {
        Job {
            nodes,
            per_node: 8,
            step: 0.15,
            images: 2,
            accumulate: 1,
            gradients: 48.99e6 * 4.0,
            as_bfloat16: false,
            steps: 117_266 / (2 * 8 * nodes),
            epochs: 12,
            evaluated: 5000,
            checkpoint: 588e6,
        }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9 * expected.abs().max(1e-3), "{found}, expected {expected}");
    }

    #[test]
    fn a_sum_takes_its_hops_and_its_bytes() {
        let links = Links { bandwidth: [4.0, 2.0], hop: [1.0, 10.0], start: 0.5, trees: false, by_cores: false };
        close(links.all_reduce(8.0, 1, 1), 0.0);
        close(links.all_reduce(8.0, 1, 2), 0.5 + 1.0 + 2.0);
        close(links.all_reduce(8.0, 2, 1), 0.5 + 20.0 + 4.0);
        // Four ranks: a ring of two hops within the nodes and two between them, three quarters of it twice.
        close(links.all_reduce(8.0, 2, 2), 0.5 + 1.5 * 22.0 + 1.5 * 4.0);
        let trees = Links { trees: true, ..links };
        close(trees.all_reduce(8.0, 64, 1), 0.5 + 2.0 * 6.0 * 10.0 + 2.0 * 63.0 / 64.0 * 4.0);
    }

    #[test]
    fn the_backward_pass_hides_sums_up_to_its_length() {
        let alone = Job { nodes: 1, per_node: 1, ..job(1) }.forecast(&Links::NCCL);
        close(alone.update_seconds, 0.15);
        close(alone.efficiency, 1.0);
        // Nothing is hidden of a single bucket.
        let links = Links { bandwidth: [1e9; 2], hop: [0.0; 2], start: 0.0, trees: false, by_cores: false };
        let small = Job { gradients: 1e6, ..job(2) }.forecast(&links);
        close(small.exposed_communication_seconds, small.communication_seconds);
        // On a slow network only the backward pass of 0.1 s, less its first bucket, is hidden.
        let slow = job(2).forecast(&links);
        let first = 0.1 * BUCKET[0] / (48.99e6 * 4.0);
        close(slow.exposed_communication_seconds, slow.communication_seconds - (0.1 - first));
        let half = Job { as_bfloat16: true, ..job(2) }.forecast(&links);
        assert!((half.communication_seconds / slow.communication_seconds - 0.5).abs() < 1e-4);
        // What the workers' cores do for a sum lengthens the backward pass.
        let by_cores = job(2).forecast(&Links { by_cores: true, bandwidth: [2e9, 1e9], ..links });
        let cores = 2.0 * 15.0 / 16.0 * 48.99e6 * 4.0 / 2e9;
        assert!((by_cores.update_seconds - slow.update_seconds - cores * first / 0.1).abs() < 1e-9);
        let fast = Links { by_cores: true, bandwidth: [2e9, 1e20], ..links };
        // With one worker in a node, the sums themselves take the network alone.
        close(Job { nodes: 16, per_node: 1, ..job(2) }.forecast(&fast).exposed_communication_seconds, cores);
        let accumulated = Job { accumulate: 4, ..job(2) }.forecast(&links);
        close(accumulated.exposed_communication_seconds, slow.exposed_communication_seconds);
        assert!(accumulated.images_per_second > slow.images_per_second);
    }

    /// The tables of docs/scaling.md.
    fn tables() -> String {
        let mut text = String::new();
        for (name, gigabytes) in [
            ("8 network cards of 400 Gbit/s in a node (360 GB/s)", 360.0),
            ("1 network card of 400 Gbit/s in a node (45 GB/s)", 45.0),
            ("1 network card of 25 Gbit/s in a node (2.8 GB/s)", 2.8),
        ] {
            let links = Links { bandwidth: [370e9, gigabytes * 1e9], ..Links::NCCL };
            text += &format!(
                "\n{name}:\n\n| GPUs | update, ms | slowest GPU, ms | communication, of that exposed, ms | efficiency | with bf16 | with \
                 accumulate = 4 | with 8 images per GPU | an epoch, of that evaluation, s |\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            );
            for gpus in [8, 16, 64, 256, 1024, 4096] {
                let plain = job(gpus / 8);
                let forecast = plain.forecast(&links);
                let percent = |job: Job| format!("{:.0} %", 100.0 * job.forecast(&links).efficiency);
                text += &format!(
                    "| {gpus} | {:.0} | {:.0} | {:.1}, {:.1} | {} | {} | {} | {} | {:.0}, {:.0} |\n",
                    1e3 * forecast.update_seconds,
                    1e3 * forecast.slowest_rank_seconds,
                    1e3 * forecast.communication_seconds,
                    1e3 * forecast.exposed_communication_seconds,
                    percent(plain),
                    percent(Job { as_bfloat16: true, ..plain }),
                    percent(Job { accumulate: 4, ..plain }),
                    percent(Job { images: 8, step: 4.0 * plain.step, ..plain }),
                    forecast.epoch_seconds,
                    forecast.evaluation_seconds
                );
            }
        }
        text
    }

    #[test]
    fn the_tables_of_the_page_are_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scaling.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let [begin, end] = ["<!-- tables of launcher/src/forecast.rs -->\n", "\n<!-- end of the tables -->"];
        let (before, rest) = page.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        let expected = [before, begin, &tables(), end, after].concat();
        if std::env::var_os("FNET_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == expected,
            "docs/scaling.md is out of date; run this test with FNET_UPDATE_DOCS=1"
        );
    }
}
