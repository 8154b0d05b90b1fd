//! The head at the places of chosen anchors only.
//!
//! A few hundred of many thousand anchors enter the loss. The gradient of the 3x3 convolution is zero everywhere else,
//! so the dense pass, which finds the proposals, needs no graph: the head is computed once more at the chosen places,
//! with their gradients, and the two most expensive convolutions of its backward pass become small products.

use tch::Tensor;

use super::super::anchors::{Anchors, Size};
use super::super::ops;
use super::Rpn;
use crate::error::Result;

/// An anchor of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    pub(super) image: usize,
    /// Index among the anchors of all levels.
    pub(super) anchor: usize,
}

/// Where an anchor stands in the map of its level.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Position in the list of the chosen.
    order: usize,
    image: usize,
    row: usize,
    column: usize,
    /// Which of the anchors of the place.
    shape: usize,
}

/// What the head says of chosen anchors.
pub(super) struct Answers {
    /// `[n]`: logits of holding an object.
    pub(super) logits: Tensor,
    /// `[n, 4]`: deltas from the anchor to the object.
    pub(super) deltas: Tensor,
}

impl Rpn {
    /// The head at the `chosen` anchors, in their order, differentiable in the levels and the head's parameters.
    ///
    /// Every level takes part, also one without a chosen anchor, so that its gradient is zero and not absent.
    pub(super) fn at(&self, levels: &[Tensor], anchors: &Anchors, chosen: &[Chosen]) -> Result<Answers> {
        let by_level = places(&anchors.levels, self.generator.per_place(), chosen);
        let (mut hidden, mut shapes, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for (level, places) in levels.iter().zip(&by_level) {
            hidden.push(self.hidden_at(level, places)?);
            shapes.extend(places.iter().map(|place| place.shape as i64));
            order.extend(places.iter().map(|place| place.order));
        }
        let hidden = Tensor::f_cat(&hidden, 0)?;
        let (count, device) = (shapes.len() as i64, hidden.device());
        let shapes = ops::upload(&Tensor::f_from_slice(&shapes)?, device)?;
        let back = ops::upload(&Tensor::f_from_slice(&inverse(&order))?, device)?;
        let per_place = self.generator.per_place() as i64;
        let logits = self.cls.at_windows(&hidden)?.f_gather(1, &shapes.f_unsqueeze(1)?, false)?;
        let deltas = self.reg.at_windows(&hidden)?.f_reshape([count, per_place, 4])?;
        let index = shapes.f_reshape([count, 1, 1])?.f_expand([count, 1, 4], false)?;
        Ok(Answers {
            logits: logits.f_reshape([-1])?.f_index_select(0, &back)?,
            deltas: deltas.f_gather(1, &index, false)?.f_reshape([count, 4])?.f_index_select(0, &back)?,
        })
    }

    /// The head's hidden values `[n, channels]` at places of one level `[images, c, h, w]`.
    fn hidden_at(&self, level: &Tensor, places: &[Place]) -> Result<Tensor> {
        let (images, channels, height, width) = level.size4()?;
        let Neighbours { indices, inside } = neighbours(places, (height as usize, width as usize));
        let device = level.device();
        // Channels-last memory already is a table of places.
        let table = level.f_permute([0, 2, 3, 1])?.f_reshape([images * height * width, channels])?;
        let mut rows = table.f_index_select(0, &ops::upload(&Tensor::f_from_slice(&indices)?, device)?)?;
        if inside.contains(&0.0) {
            let inside = Tensor::f_from_slice(&inside)?.f_reshape([-1, 1])?.f_to_kind(level.kind())?;
            rows = rows.f_mul(&ops::upload(&inside, device)?)?;
        }
        Ok(self.conv.at_windows(&rows.f_reshape([places.len() as i64, 9 * channels])?)?.f_relu()?)
    }
}

/// The chosen anchors of each level.
fn places(levels: &[Size], per_place: usize, chosen: &[Chosen]) -> Vec<Vec<Place>> {
    let mut starts = vec![0];
    for &(height, width) in levels {
        starts.push(starts[starts.len() - 1] + height * width * per_place);
    }
    let mut places = vec![Vec::new(); levels.len()];
    for (order, &Chosen { image, anchor }) in chosen.iter().enumerate() {
        let level = starts.partition_point(|&start| start <= anchor) - 1;
        let (place, shape) = ((anchor - starts[level]) / per_place, (anchor - starts[level]) % per_place);
        let width = levels[level].1;
        places[level].push(Place { order, image, row: place / width, column: place % width, shape });
    }
    places
}

/// The 3x3 neighbourhoods of places, row by row.
struct Neighbours {
    /// Nine rows of the level's table for each place; any row for a neighbour outside.
    indices: Vec<i64>,
    /// 1 for a neighbour inside the map, 0 outside.
    inside: Vec<f32>,
}

fn neighbours(places: &[Place], (height, width): Size) -> Neighbours {
    let mut indices = Vec::with_capacity(9 * places.len());
    let mut inside = Vec::with_capacity(9 * places.len());
    for place in places {
        for (down, right) in (0..3).flat_map(|down| (0..3).map(move |right| (down, right))) {
            // One more than the true row and column, so that they stay above zero.
            let (row, column) = (place.row + down, place.column + right);
            let is_inside = (1..=height).contains(&row) && (1..=width).contains(&column);
            inside.push(if is_inside { 1.0 } else { 0.0 });
            let (row, column) = (row.clamp(1, height) - 1, column.clamp(1, width) - 1);
            indices.push(((place.image * height + row) * width + column) as i64);
        }
    }
    Neighbours { indices, inside }
}

/// For a list that says where each entry was, the list that puts them back.
fn inverse(order: &[usize]) -> Vec<i64> {
    let mut back = vec![0; order.len()];
    for (now, &then) in (0..).zip(order) {
        back[then] = now;
    }
    back
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::config;
    use crate::model::Parameters;

    /// The head at chosen anchors of three small levels against the dense head, values and gradients.
    #[test]
    fn the_head_at_chosen_anchors_is_the_dense_head_there() {
        let config = config::Rpn { feat_channels: 8, anchor_strides: vec![4, 8, 16], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 6, &config).unwrap();
        parameters.initialise(3).unwrap();
        let options = (Kind::Float, Device::Cpu);
        let leaf = |h, w| Tensor::randn([2, 6, h, w], options).set_requires_grad(true);
        let levels = [leaf(8, 12), leaf(4, 6), leaf(2, 3)];
        let output = rpn.forward(&levels).unwrap();
        let total = output.anchors.boxes.len();
        // Corners, edges, the inside, twice the same, out of order; none of the last level.
        let chosen: Vec<Chosen> = [(1, 290), (0, 0), (0, 35), (1, 3), (0, 150), (0, 150), (1, 287), (0, 288), (1, 359)]
            .map(|(image, anchor)| Chosen { image, anchor })
            .to_vec();
        let answers = rpn.at(&levels, &output.anchors, &chosen).unwrap();

        let index: Vec<i64> = chosen.iter().map(|c| (c.image * total + c.anchor) as i64).collect();
        let index = Tensor::from_slice(&index);
        let logits = Tensor::cat(&output.logits, 1).flatten(0, 1).index_select(0, &index);
        let deltas = Tensor::cat(&output.deltas, 1).flatten(0, 1).index_select(0, &index);
        let gradients = |logits: &Tensor, deltas: &Tensor| -> Vec<Tensor> {
            let loss = (logits * logits).sum(Kind::Float) + (deltas * 3.0).sin().sum(Kind::Float);
            let mut inputs: Vec<&Tensor> = levels.iter().collect();
            inputs.extend(parameters.trainable().map(|(_, tensor)| tensor));
            Tensor::run_backward(&[loss], &inputs, true, false)
        };
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-4, 1e-6, false), "{a:?} {b:?}");
        close(&answers.logits, &logits);
        close(&answers.deltas, &deltas);
        for (actual, expected) in gradients(&answers.logits, &answers.deltas).iter().zip(gradients(&logits, &deltas)) {
            close(actual, &expected);
        }
    }

    #[test]
    fn without_a_chosen_anchor_all_gradients_are_zero_and_there() {
        let config = config::Rpn { feat_channels: 4, anchor_strides: vec![4], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 3, &config).unwrap();
        let level = Tensor::randn([1, 3, 4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let anchors = rpn.anchors(&[(4, 4)]).unwrap();
        let answers = rpn.at(std::slice::from_ref(&level), &anchors, &[]).unwrap();
        (answers.logits.sum(Kind::Float) + answers.deltas.sum(Kind::Float)).backward();
        for tensor in parameters.trainable().map(|(_, tensor)| tensor).chain([&level]) {
            assert!(tensor.grad().defined());
            assert_eq!(tensor.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
        }
    }
}
