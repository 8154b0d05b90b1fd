//! The layers of a model, with the shapes of their results.

use serde::Serialize;

/// Kind of a counted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LayerKind {
    /// Convolution.
    Conv2d,
    /// Transposed convolution.
    ConvTranspose2d,
    /// Fully connected layer.
    Linear,
    /// Batch normalization.
    BatchNorm2d,
    /// Rectified linear unit.
    #[serde(rename = "ReLU")]
    Relu,
}

/// One layer, over all its calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Name as in MMDetection's module tree.
    pub name: String,
    /// The kind of layer.
    pub kind: LayerKind,
    /// Operations by MMDetection's rule.
    pub flops: u64,
    /// Multiply-adds, without biases, norms and activations.
    pub macs: u64,
    /// Trainable values.
    pub params: u64,
    /// Output values of a convolution or a fully connected layer.
    pub activations: u64,
    /// Shape of the result of each call.
    pub outputs: Vec<Vec<u64>>,
}

/// Channels, height and width of a feature map.
#[derive(Debug, Clone, Copy)]
pub struct Map {
    /// Channels.
    pub channels: u64,
    /// Pixels.
    pub height: u64,
    /// Pixels.
    pub width: u64,
}

impl Map {
    /// Height times width.
    pub fn pixels(self) -> u64 {
        self.height * self.width
    }

    /// Values of all channels.
    pub fn values(self) -> u64 {
        self.channels * self.pixels()
    }

    /// The map that a convolution without padding makes of this one, or one that keeps the size if `stride` is 1.
    #[must_use]
    pub fn convolved(self, channels: u64, stride: u64) -> Self {
        Self { channels, height: self.height / stride, width: self.width / stride }
    }
}

/// Layers in the order of MMDetection's module tree.
#[derive(Debug, Default)]
pub struct Layers {
    layers: Vec<Layer>,
    uncounted: u64,
}

impl Layers {
    /// All layers.
    pub fn into_vec(self) -> Vec<Layer> {
        self.layers
    }

    /// Adds the output of what MMDetection does not count, such as GELU: it takes memory in training.
    pub fn uncounted(&mut self, map: Map) {
        self.uncounted += map.values();
    }

    /// Output values of what is not counted.
    pub fn uncounted_values(&self) -> u64 {
        self.uncounted
    }

    /// A convolution of `count` maps at once; returns the map that it makes.
    pub fn conv(&mut self, name: &str, count: u64, input: Map, output: Map, kernel: u64, bias: bool) -> Map {
        let weights = kernel * kernel * input.channels * output.channels;
        let macs = count * weights * output.pixels();
        let biases = if bias { output.channels } else { 0 };
        let values = count * output.values();
        let layer = Layer {
            name: name.to_owned(),
            kind: LayerKind::Conv2d,
            flops: macs + if bias { values } else { 0 },
            macs,
            params: weights + biases,
            activations: values,
            outputs: vec![vec![count, output.channels, output.height, output.width]],
        };
        self.push(layer);
        output
    }

    /// BatchNorm of one map.
    pub fn norm(&mut self, name: &str, map: Map) {
        let shape = vec![1, map.channels, map.height, map.width];
        self.simple(name, LayerKind::BatchNorm2d, 2 * map.values(), 2 * map.channels, shape);
    }

    /// A layer without multiply-adds.
    pub fn simple(&mut self, name: &str, kind: LayerKind, flops: u64, params: u64, shape: Vec<u64>) {
        let (macs, activations, outputs) = (0, 0, vec![shape]);
        self.push(Layer { name: name.to_owned(), kind, flops, macs, params, activations, outputs });
    }

    /// A rectified linear unit.
    pub fn relu(&mut self, name: &str, shape: Vec<u64>) {
        self.simple(name, LayerKind::Relu, shape.iter().product(), 0, shape);
    }

    /// A fully connected layer of `rows` rows.
    pub fn linear(&mut self, name: &str, rows: u64, inputs: u64, outputs: u64) {
        let macs = rows * inputs * outputs;
        self.push(Layer {
            name: name.to_owned(),
            kind: LayerKind::Linear,
            flops: macs,
            macs,
            params: inputs * outputs + outputs,
            activations: rows * outputs,
            outputs: vec![vec![rows, outputs]],
        });
    }

    /// Adds a layer, or another call of one that is there; its parameters count once.
    pub fn push(&mut self, layer: Layer) {
        match self.layers.iter_mut().find(|known| known.name == layer.name) {
            Some(known) => {
                known.flops += layer.flops;
                known.macs += layer.macs;
                known.activations += layer.activations;
                known.outputs.extend(layer.outputs);
            }
            None => self.layers.push(layer),
        }
    }
}
