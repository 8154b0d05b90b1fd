//! The head at the places of chosen anchors only.
//!
//! A few hundred of many thousand anchors enter the loss. The gradient of the 3x3 convolution is zero everywhere else,
//! so the dense pass, which finds the proposals, needs no graph: the head is computed once more at the chosen places,
//! with their gradients, and the two most expensive convolutions of its backward pass become small products.

use tch::{Device, Tensor};
use torch_ext::block::linear_relu;
use torch_ext::levels::{Rows, gather_rows};

use fnet_common::{Error, Result};

use super::head::{Head, JoinedHead};
use crate::anchors::Size;
use crate::pack::{Pack, Sent, Table};

/// An anchor of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    pub(super) image: usize,
    /// Index among the anchors of all levels.
    pub(super) anchor: usize,
}

/// Where an anchor is in the map of its level.
#[derive(Debug, Clone, Copy)]
struct AnchorPlace {
    /// Position in the list of the chosen.
    order: usize,
    image: usize,
    row: usize,
    column: usize,
    /// Which of the anchors of the place.
    shape: usize,
}

/// What [`Head::at`] needs to know, on its way to the device.
pub(super) struct ChosenTables {
    way: Way,
    chosen: usize,
    with_deltas: usize,
}

/// How the head is computed at the chosen places.
enum Way {
    ByLevel {
        levels: Vec<LevelTables>,
        /// For each chosen anchor its place among the answers of all shapes.
        cells: Table,
        /// The same for those whose deltas are asked for.
        delta_cells: Table,
    },
    /// All levels in one pass.
    Joined(OnePass),
}

/// What [`Rows`] are made of, and the places of the logits and then of the deltas in a table of both.
struct OnePass {
    rows: Table,
    flat_rows: Table,
    counts: Vec<i64>,
    inside: Option<Table>,
    cells: Table,
}

/// The 3x3 neighborhoods of one level.
struct LevelTables {
    /// Nine rows of the level's table for each place.
    rows: Table,
    /// 1 for a neighbor inside the map, 0 outside, if one is outside.
    inside: Option<Table>,
}

/// What the head says of chosen anchors.
pub(super) struct Answers {
    /// `[n]`: logits of holding an object.
    pub(super) logits: Tensor,
    /// `[m, 4]`: deltas from the anchor to the object, of those that were asked for.
    pub(super) deltas: Tensor,
}

impl Head {
    /// Adds to `pack` what [`Head::at`] needs to know of `chosen` in `images` images; `with_deltas` are the places in that list
    /// whose deltas are asked for.
    ///
    /// A GPU makes one pass over the neighborhoods of all levels, for its time goes by calls; on the CPU each level has its
    /// own, whose sums round as they always did.
    pub(super) fn tabulate_chosen(
        &self,
        (images, sizes): (usize, &[Size]),
        chosen: &[Chosen],
        with_deltas: &[usize],
        device: Device,
        pack: &mut Pack,
    ) -> ChosenTables {
        let per_place = self.per_place;
        let by_level = places(sizes, per_place, chosen);
        let mut cells = vec![[0; 2]; chosen.len()];
        for (row, place) in by_level.iter().flatten().enumerate() {
            cells[place.order] = [row, place.shape];
        }
        let of_levels = by_level.iter().zip(sizes).map(|(places, &size)| neighbors(places, size));
        let multiplier = |inside: &[f32], pack: &mut Pack| {
            inside.contains(&0.0).then(|| pack.add(inside, &[inside.len() as i64, 1]))
        };
        let way = if device == Device::Cpu {
            let cell = |[row, shape]: [usize; 2]| (row * per_place + shape) as i64;
            let of_all: Vec<i64> = cells.iter().map(|&one| cell(one)).collect();
            let of_deltas: Vec<i64> = with_deltas.iter().map(|&place| cell(cells[place])).collect();
            let (cells, delta_cells) = (pack.list(&of_all), pack.list(&of_deltas));
            let tables = |Neighbors { rows, inside }: Neighbors| LevelTables {
                rows: pack.list(&rows),
                inside: multiplier(&inside, &mut *pack),
            };
            Way::ByLevel { levels: of_levels.map(tables).collect(), cells, delta_cells }
        } else {
            let (mut rows, mut flat_rows, mut counts, mut inside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let rows_of = |&(height, width): &Size| (images * height * width) as i64;
            let outside: i64 = sizes.iter().map(rows_of).sum();
            let mut start = 0;
            for (of_level, size) in of_levels.zip(sizes) {
                let flat = of_level.rows.iter().zip(&of_level.inside);
                flat_rows.extend(flat.map(|(row, &inside)| if inside > 0.0 { start + row } else { outside }));
                counts.push(of_level.rows.len() as i64);
                rows.extend(of_level.rows);
                inside.extend(of_level.inside);
                start += rows_of(size);
            }
            // A row of answers: a logit of each shape, then the four deltas of each.
            let logit = |&[row, shape]: &[usize; 2]| (5 * row * per_place + shape) as i64;
            let deltas = |&place: &usize| {
                let [row, shape] = cells[place];
                let first = (5 * row + 1) * per_place + 4 * shape;
                (first as i64)..(first + 4) as i64
            };
            let cells: Vec<i64> = cells.iter().map(logit).chain(with_deltas.iter().flat_map(deltas)).collect();
            let inside = multiplier(&inside, &mut *pack);
            let (rows, flat_rows, cells) = (pack.list(&rows), pack.list(&flat_rows), pack.list(&cells));
            Way::Joined(OnePass { rows, flat_rows, counts, inside, cells })
        };
        ChosenTables { way, chosen: chosen.len(), with_deltas: with_deltas.len() }
    }

    /// The head at the chosen anchors, in their order, differentiable in the levels and the head's parameters.
    ///
    /// Every level takes part, also one without a chosen anchor, so that its gradient is zero and not absent.
    pub(super) fn at(
        &self,
        levels: &[Tensor],
        tables: &ChosenTables,
        joined: Option<&JoinedHead>,
        sent: &Sent,
    ) -> Result<Answers> {
        match &tables.way {
            Way::ByLevel { levels: of_levels, cells, delta_cells } => {
                let of_level = |(level, tables): (&Tensor, &LevelTables)| self.hidden_at(level, tables, sent);
                let hidden = levels.iter().zip(of_levels).map(of_level).collect::<Result<Vec<_>>>()?;
                let hidden = Tensor::f_cat(&hidden, 0)?;
                let logits = self.cls.at_windows(&hidden)?.f_reshape([-1])?;
                let deltas = self.reg.at_windows(&hidden)?.f_reshape([-1, 4])?;
                Ok(Answers {
                    logits: logits.f_index_select(0, &sent.table(cells)?)?,
                    deltas: deltas.f_index_select(0, &sent.table(delta_cells)?)?,
                })
            }
            Way::Joined(pass) => {
                let counts = (tables.chosen, tables.with_deltas);
                match joined {
                    Some(head) => self.at_once(levels, pass, counts, head, sent),
                    None => self.at_once(levels, pass, counts, &self.join()?, sent),
                }
            }
        }
    }

    /// The head in one pass over all levels, both its answers in one product.
    fn at_once(
        &self,
        levels: &[Tensor],
        pass: &OnePass,
        (chosen, with_deltas): (usize, usize),
        head: &JoinedHead,
        sent: &Sent,
    ) -> Result<Answers> {
        let rows = Rows {
            rows: sent.table(&pass.rows)?,
            flat_rows: sent.table(&pass.flat_rows)?,
            counts: &pass.counts,
            inside: pass.inside.as_ref().map(|inside| sent.table(inside)).transpose()?,
        };
        let windows = windows(&gather_rows(levels, &rows)?)?;
        let hidden = match self.conv.bias() {
            Some(bias) => linear_relu(&windows, &self.conv.window_weight()?, bias)?,
            None => self.conv.at_windows(&windows)?.f_relu()?,
        };
        let answers = hidden.f_linear(&head.weight, head.bias.as_ref())?.f_reshape([-1])?;
        let picked = answers.f_index_select(0, &sent.table(&pass.cells)?)?;
        let mut parts = picked.f_split_with_sizes([chosen as i64, 4 * with_deltas as i64], 0)?;
        let deltas = parts.pop().map(|deltas| deltas.f_reshape([with_deltas as i64, 4])).transpose()?;
        match (parts.pop(), deltas) {
            (Some(logits), Some(deltas)) => Ok(Answers { logits, deltas }),
            _ => Err(Error::bug("a tensor that was split in two has no two parts")),
        }
    }

    /// The head's hidden values `[n, channels]` at places of one level.
    fn hidden_at(&self, level: &Tensor, tables: &LevelTables, sent: &Sent) -> Result<Tensor> {
        let mut rows = rows_at(level, tables, sent)?;
        if let Some(inside) = &tables.inside {
            rows = rows.f_mul(&sent.table(inside)?.f_to_kind(rows.kind())?)?;
        }
        Ok(self.conv.at_windows(&windows(&rows)?)?.f_relu()?)
    }
}

/// Neighborhoods of nine rows each, `[9 n, c]`, as windows `[n, 9 c]`.
fn windows(rows: &Tensor) -> Result<Tensor> {
    let (count, channels) = rows.size2()?;
    Ok(rows.f_reshape([count / 9, 9 * channels])?)
}

/// The neighborhoods' rows `[9 n, c]` of a level `[images, c, h, w]`.
fn rows_at(level: &Tensor, tables: &LevelTables, sent: &Sent) -> Result<Tensor> {
    let (images, channels, height, width) = level.size4()?;
    // Channels-last memory already is a table of places.
    let table = level.f_permute([0, 2, 3, 1])?.f_reshape([images * height * width, channels])?;
    Ok(table.f_index_select(0, &sent.table(&tables.rows)?)?)
}

/// The chosen anchors of each level.
fn places(levels: &[Size], per_place: usize, chosen: &[Chosen]) -> Vec<Vec<AnchorPlace>> {
    let mut starts = vec![0];
    for &(height, width) in levels {
        starts.push(starts[starts.len() - 1] + height * width * per_place);
    }
    let mut places = vec![Vec::new(); levels.len()];
    for (order, &Chosen { image, anchor }) in chosen.iter().enumerate() {
        let level = starts.partition_point(|&start| start <= anchor) - 1;
        let (place, shape) = ((anchor - starts[level]) / per_place, (anchor - starts[level]) % per_place);
        let width = levels[level].1;
        places[level].push(AnchorPlace { order, image, row: place / width, column: place % width, shape });
    }
    places
}

/// The 3x3 neighborhoods of places, row by row.
struct Neighbors {
    /// Nine rows of the level's table for each place; any row for a neighbor outside.
    rows: Vec<i64>,
    /// 1 for a neighbor inside the map, 0 outside.
    inside: Vec<f32>,
}

fn neighbors(places: &[AnchorPlace], (height, width): Size) -> Neighbors {
    let mut rows = Vec::with_capacity(9 * places.len());
    let mut inside = Vec::with_capacity(9 * places.len());
    for place in places {
        for (down, right) in (0..3).flat_map(|down| (0..3).map(move |right| (down, right))) {
            // One more than the true row and column, so that they stay above zero.
            let (row, column) = (place.row + down, place.column + right);
            let is_inside = (1..=height).contains(&row) && (1..=width).contains(&column);
            inside.push(if is_inside { 1.0 } else { 0.0 });
            let (row, column) = (row.clamp(1, height) - 1, column.clamp(1, width) - 1);
            rows.push(((place.image * height + row) * width + column) as i64);
        }
    }
    Neighbors { rows, inside }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use fnet_config as config;

    use super::*;
    use crate::Parameters;
    use crate::rpn::Rpn;

    /// The head at chosen anchors of three small levels against the dense head, values and gradients.
    #[test]
    fn the_head_at_chosen_anchors_is_the_dense_head_there() {
        let config = config::Rpn { feat_channels: 8, anchor_strides: vec![4, 8, 16], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 6, &config).unwrap();
        parameters.initialize(3).unwrap();
        let options = (Kind::Float, Device::Cpu);
        let leaf = |h, w| Tensor::randn([2, 6, h, w], options).set_requires_grad(true);
        let levels = [leaf(8, 12), leaf(4, 6), leaf(2, 3)];
        let output = rpn.forward(&levels).unwrap();
        let total = output.anchors.boxes.len();
        // Corners, edges, the inside, twice the same, out of order; none of the last level.
        let chosen: Vec<Chosen> = [(1, 290), (0, 0), (0, 35), (1, 3), (0, 150), (0, 150), (1, 287), (0, 288), (1, 359)]
            .map(|(image, anchor)| Chosen { image, anchor })
            .to_vec();
        let with_deltas: Vec<usize> = (0..chosen.len()).rev().collect();

        let index: Vec<i64> = chosen.iter().map(|c| (c.image * total + c.anchor) as i64).collect();
        let index = Tensor::from_slice(&index);
        let logits = Tensor::cat(&output.logits, 1).flatten(0, 1).index_select(0, &index);
        let deltas = Tensor::cat(&output.deltas, 1).flatten(0, 1).index_select(0, &index.flip([0]));
        let gradients = |logits: &Tensor, deltas: &Tensor| -> Vec<Tensor> {
            let loss = (logits * logits).sum(Kind::Float) + (deltas * 3.0).sin().sum(Kind::Float);
            let mut inputs: Vec<&Tensor> = levels.iter().collect();
            inputs.extend(parameters.trainable().map(|(_, tensor)| tensor));
            Tensor::run_backward(&[loss], &inputs, true, false)
        };
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-4, 1e-6, false), "{a:?} {b:?}");
        for device in [Device::Cpu, Device::Cuda(0)] {
            let mut pack = Pack::default();
            let tables =
                rpn.head.tabulate_chosen((2, &output.anchors.levels), &chosen, &with_deltas, device, &mut pack);
            let sent = pack.send(Device::Cpu).unwrap();
            let answers = rpn.head.at(&levels, &tables, None, &sent).unwrap();
            close(&answers.logits, &logits);
            close(&answers.deltas, &deltas);
            let (actual, expected) = (gradients(&answers.logits, &answers.deltas), gradients(&logits, &deltas));
            actual.iter().zip(&expected).for_each(|(actual, expected)| close(actual, expected));
        }
    }

    #[test]
    fn without_a_chosen_anchor_all_gradients_are_zero_and_there() {
        let config = config::Rpn { feat_channels: 4, anchor_strides: vec![4], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 3, &config).unwrap();
        let level = Tensor::randn([1, 3, 4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let anchors = rpn.anchors(&[(4, 4)]).unwrap();
        for device in [Device::Cpu, Device::Cuda(0)] {
            let mut pack = Pack::default();
            let tables = rpn.head.tabulate_chosen((1, &anchors.levels), &[], &[], device, &mut pack);
            let sent = pack.send(Device::Cpu).unwrap();
            let answers = rpn.head.at(std::slice::from_ref(&level), &tables, None, &sent).unwrap();
            (answers.logits.sum(Kind::Float) + answers.deltas.sum(Kind::Float)).backward();
        }
        for tensor in parameters.trainable().map(|(_, tensor)| tensor).chain([&level]) {
            assert!(tensor.grad().defined());
            assert_eq!(tensor.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
        }
    }
}
