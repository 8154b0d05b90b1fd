//! Estimates the maximum memory of a worker from the shapes of the model, the batch and the optimizer.
//!
//! Memory peaks when the backward pass begins and every layer's output is still needed. So the estimate adds up the weights,
//! their gradients, the optimizer's state, and the outputs of all layers (convolutions, fully connected layers, BatchNorm,
//! ReLU) for a batch of the largest images with the maximum number of RoIs. docs/performance.md compares it with
//! measurements on the CPU.

use fnet_common::Result;
use fnet_config::{Amp, Config, GradCompression, OptimizerKind, Pipeline};
use fnet_model::flops::{BBOX_ROIS, FlopsReport, MASK_ROIS, count};
use fnet_model::{Parameters, Role};
use fnet_protocol::estimate::MemoryEstimate;

use super::disk::bytes;

/// Bytes of a float32.
const VALUE: u64 = 4;
/// A process with libtorch and allocator overhead, on the CPU.
const PROCESS: u64 = 200 << 20;
/// Batches that each loader thread has ready or in progress.
const BATCHES_PER_THREAD: u64 = 2;
/// Tensors of the size of the largest layer's output that exist at a time in inference: input, output and scratch.
const AT_A_TIME: u64 = 3;

/// The maximum memory of a worker in training.
/// Errors: a usage error if the images are too small for the model.
pub(crate) fn of_training(config: &Config, parameters: &Parameters) -> Result<MemoryEstimate> {
    let batch = config.data.samples_per_gpu as u64;
    let shape = largest_shape(&config.data.pipeline.largest_training_images(), &config.data.pipeline);
    let sampler = &config.model.roi_head.sampler;
    let rois = batch * sampler.count as u64;
    let positives = (rois as f64 * sampler.positive_fraction).ceil() as u64;
    let report = count(&config.model, shape[0], shape[1])?;
    let head = &config.model.roi_head;
    let channels = config.model.neck.out_channels as u64;
    // RoI features and their gradients.
    let of_masks = if config.model.mask { positives * square(head.mask_roi_size) } else { 0 };
    let features = 2 * channels * (rois * square(head.bbox_roi_size) + of_masks);
    let values = outputs(&report, batch, rois, positives) + features;
    let narrow = config.train.amp != Amp::Off;
    let weights = total(parameters, Role::Parameter);
    let trained = gradients(parameters);
    let moments = match config.optimizer.kind {
        OptimizerKind::AdamW => 2,
        OptimizerKind::Sgd => u64::from(config.optimizer.momentum > 0.0),
    };
    let threads = config.data.workers_per_gpu as u64;
    let images = (threads * BATCHES_PER_THREAD + 1) * batch * image(shape);
    Ok(MemoryEstimate {
        shape,
        batch: config.data.samples_per_gpu,
        weights: weights + total(parameters, Role::Buffer),
        gradients: if config.train.grad_compression == GradCompression::Bf16 { trained + trained / 2 } else { trained },
        optimizer: trained * (moments + u64::from(config.train.ema > 0.0)),
        // Values in float16 or bfloat16 take half, and so does a copy of the weights.
        activations: if narrow { values * VALUE / 2 + weights / 2 } else { values * VALUE },
        fixed: PROCESS + images,
        total: 0,
    }
    .summed())
}

/// Bytes of the gradients.
pub fn gradients(parameters: &Parameters) -> u64 {
    parameters.trained().map(|(_, tensor)| bytes(tensor)).sum()
}

/// The maximum memory of a worker in inference, one image at a time.
/// Errors: a usage error if the images are too small for the model.
pub fn of_inference(config: &Config, parameters: &Parameters) -> Result<MemoryEstimate> {
    let [long, short] = config.data.pipeline.test_scale;
    let shape = largest_shape(&[[short, long]], &config.data.pipeline);
    let report = count(&config.model, shape[0], shape[1])?;
    let size = |outputs: &[Vec<u64>]| outputs.iter().map(|output| output.iter().product::<u64>()).max().unwrap_or(0);
    let largest = report.layers.iter().map(|layer| size(&layer.outputs)).max().unwrap_or(0);
    let levels: u64 = report
        .layers
        .iter()
        .filter(|layer| layer.name.starts_with("neck."))
        .flat_map(|layer| &layer.outputs)
        .map(|output| output.iter().product::<u64>())
        .sum();
    let features = config.model.neck.out_channels as u64 * BBOX_ROIS * square(config.model.roi_head.bbox_roi_size);
    let threads = config.data.workers_per_gpu as u64;
    Ok(MemoryEstimate {
        shape,
        batch: 1,
        weights: total(parameters, Role::Parameter) + total(parameters, Role::Buffer),
        activations: (AT_A_TIME * largest + levels + features) * VALUE,
        fixed: PROCESS + (threads * BATCHES_PER_THREAD + 1) * image(shape),
        ..MemoryEstimate::default()
    }
    .summed())
}

/// Number of output values of all layers for `batch` images and the given RoIs in the heads.
fn outputs(report: &FlopsReport, batch: u64, rois: u64, positives: u64) -> u64 {
    let values = |layer: &fnet_model::flops::Layer| {
        let values: u64 = layer.outputs.iter().map(|output| output.iter().product::<u64>()).sum();
        if layer.name.starts_with("roi_head.bbox_head.") {
            values * rois / BBOX_ROIS
        } else if layer.name.starts_with("roi_head.mask_head.") {
            values * positives / MASK_ROIS
        } else {
            values * batch
        }
    };
    report.layers.iter().map(values).sum::<u64>() + report.uncounted * batch
}

/// The padded size of the image that takes the most pixels, of images of `sizes` [height, width]; of a portrait and a landscape
/// image, the latter.
fn largest_shape(sizes: &[[usize; 2]], pipeline: &Pipeline) -> [usize; 2] {
    let padded = |side: usize| side.next_multiple_of(pipeline.size_divisor).next_multiple_of(32);
    let shapes = sizes.iter().map(|size| size.map(padded));
    shapes.max_by_key(|&[height, width]| (height * width, width)).unwrap_or([32, 32])
}

/// Bytes of one preprocessed image.
fn image([height, width]: [usize; 2]) -> u64 {
    3 * VALUE * (height * width) as u64
}

fn square(side: usize) -> u64 {
    (side * side) as u64
}

fn total(parameters: &Parameters, wanted: Role) -> u64 {
    parameters.iter().filter(|(_, role, _)| *role == wanted).map(|(_, _, tensor)| bytes(tensor)).sum()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use fnet_model::MaskRcnn;

    use super::*;

    fn estimate(change: impl Fn(&mut Config)) -> MemoryEstimate {
        let mut config = Config::default();
        config.model.backbone.depths = [1, 1, 1, 1];
        change(&mut config);
        let mut parameters = Parameters::new();
        MaskRcnn::new(&config.model, &mut parameters, Device::Cpu, 0).unwrap();
        of_training(&config, &parameters).unwrap()
    }

    #[test]
    fn persistent_tensors_are_counted_to_the_byte() {
        let adam = estimate(|_| {});
        assert_eq!(adam.optimizer, 2 * adam.gradients);
        assert!(adam.weights > adam.gradients);
        let average = estimate(|config| config.train.ema = 0.9);
        assert_eq!(average.optimizer, 3 * average.gradients);
        let sgd = estimate(|config| {
            config.optimizer.kind = OptimizerKind::Sgd;
            config.optimizer.momentum = 0.0;
        });
        assert_eq!(sgd.optimizer, 0);
        let frozen = estimate(|config| config.model.frozen_stages = 4);
        assert!(frozen.weights == adam.weights && frozen.gradients < adam.gradients);
        assert_eq!(frozen.optimizer, 2 * frozen.gradients);
        assert_eq!(adam.total, adam.weights + adam.gradients + adam.optimizer + adam.activations + adam.fixed);
    }

    #[test]
    fn activations_grow_with_the_batch_and_the_largest_image() {
        let one = estimate(|config| config.data.samples_per_gpu = 1);
        let four = estimate(|config| config.data.samples_per_gpu = 4);
        assert_eq!((one.shape, one.batch), ([800, 1344], 1));
        assert!((3.9..4.1).contains(&(four.activations as f64 / one.activations as f64)));
        let several = estimate(|config| {
            config.data.samples_per_gpu = 1;
            config.data.pipeline.scales = vec![[640, 480], [1600, 1200]];
        });
        assert_eq!(several.shape, [1216, 1600]);
        assert!(several.activations > one.activations);
        let list = |text: &str| {
            let toml = format!("data.samples_per_gpu = 1\ndata.pipeline.train = [{text}]");
            let pipeline = Config::from_toml(&toml, "test").unwrap().data.pipeline;
            estimate(|config| config.data.pipeline = pipeline.clone()).shape
        };
        let jitter = "{kind = \"resize\", scales = [[1000, 1000]], ratio_range = [0.1, 2.0]}";
        assert_eq!(list(jitter), [2016, 2016]);
        assert_eq!(list("{kind = \"resize\", scales = [[640, 480], [1600, 1200]]}, {kind = \"flip\"}"), [1216, 1600]);
        let crop = "{kind = \"random_crop\", crop_type = \"absolute_range\", crop_size = [300, 900]}";
        assert_eq!(list(&format!("{jitter}, {crop}")), [928, 928]);
        assert_eq!(list(&format!("{jitter}, {crop}, {{kind = \"pad\", size = [1000, 1024]}}")), [1024, 1024]);
        let narrow = estimate(|config| {
            config.data.samples_per_gpu = 1;
            config.train.amp = Amp::Bf16;
        });
        assert!(narrow.activations < one.activations * 6 / 10);
    }
}
