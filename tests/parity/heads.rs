//! Stages "RoIAlign", "box head" and "mask head": from the pyramid and stored RoIs to the heads' raw outputs.

use tch::{Device, Kind, Tensor};

use fnet_model::{MaskRcnn, Parameters};

use super::compare::{STAGE, integers, kept};
use super::fixtures::{Fixtures, Tensors};
use super::inputs::{backbone, levels, stored_or};

/// The inputs of the heads in the evaluation of the batch.
pub(super) struct Heads {
    pub(super) fixtures: Fixtures,
    pub(super) model: MaskRcnn,
    pub(super) stored: Tensors,
    pub(super) levels: Vec<Tensor>,
    _parameters: Parameters,
}

impl Heads {
    pub(super) fn open() -> Option<Self> {
        let fixtures = Fixtures::open()?;
        let (model, parameters) = fixtures.model();
        let stored = fixtures.tensors("eval_batch");
        let levels = levels(&model, &stored, &fixtures.tensors("data").get("img"));
        Some(Self { fixtures, model, stored, levels, _parameters: parameters })
    }

    /// The RoIs with stored mask features and logits: all of `mask_rois`, or every n-th.
    fn mask_rois(&self) -> Tensor {
        let (rois, stored) = (self.stored.get("mask_rois"), self.stored.get("mask_feats"));
        rois.index_select(0, &Tensor::from_slice(&kept("mask_feats", rois.size()[0], stored.size()[0])))
    }

    /// Scores and deltas of all proposals' RoIs, from the pyramid.
    pub(super) fn box_head(&self) -> (Tensor, Tensor) {
        let head = &self.model.roi_head;
        tch::no_grad(|| {
            let features = head.bbox_extractor.forward(&self.levels, &self.stored.get("rois")).unwrap();
            head.bbox.forward(&features).unwrap()
        })
    }
}

#[test]
fn parity_roi_align() {
    let Some(heads) = Heads::open() else { return };
    let (head, stored, compare) = (&heads.model.roi_head, &heads.stored, heads.fixtures.compare("RoIAlign"));
    let rois = stored.get("sub_rois");
    let roi_levels = integers(&head.bbox_extractor.assign_levels(&rois).unwrap());
    compare.equal("pyramid levels of RoIs", &roi_levels, &stored.integers("sub_levels"));
    let features = head.bbox_extractor.forward(&heads.levels, &rois).unwrap();
    compare.tensor("7x7 features", &features, &stored.get("sub_bbox_feats"), STAGE);
    let features = head.mask_extractor.forward(&heads.levels, &heads.mask_rois()).unwrap();
    compare.tensor("14x14 features", &features, &stored.get("mask_feats"), STAGE);
    let all = stored.get("rois");
    let assigned = integers(&head.bbox_extractor.assign_levels(&all).unwrap());
    let counts: Vec<usize> = (0..4).map(|level| assigned.iter().filter(|&&own| own == level).count()).collect();
    let facts = &heads.fixtures.meta["eval_batch"];
    let expected: Vec<usize> = serde_json::from_value(facts["roi_level_counts"].clone()).unwrap();
    compare.equal("number of proposals on each level", &counts, &expected);
    let features = head.bbox_extractor.forward(&heads.levels, &all).unwrap();
    compare.statistics("7x7 features of all proposals", &features, &facts["bbox_feats"]);
}

#[test]
fn parity_box_head() {
    let Some(heads) = Heads::open() else { return };
    let (head, stored, compare) = (&heads.model.roi_head, &heads.stored, heads.fixtures.compare("box head"));
    let _guard = tch::no_grad_guard();
    let own = head.bbox_extractor.forward(&heads.levels, &stored.get("sub_rois")).unwrap();
    let (scores, deltas) = head.bbox.forward(&stored_or(stored, "sub_bbox_feats", own)).unwrap();
    compare.tensor("scores", &scores, &stored.get("sub_cls_score"), STAGE);
    compare.tensor("deltas", &deltas, &stored.get("sub_bbox_pred"), STAGE);
    let (scores, deltas) = heads.box_head();
    compare.tensor("scores of all proposals", &scores, &stored.get("cls_score"), STAGE);
    compare.statistics("deltas of all proposals", &deltas, &heads.fixtures.meta["eval_batch"]["bbox_pred"]);
    if let Some(expected) = stored.optional("bbox_pred") {
        compare.tensor("deltas of all proposals", &deltas, expected, STAGE);
    }
}

#[test]
fn parity_box_head_of_single_images() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let (data, head) = (fixtures.tensors("data"), &model.roi_head);
    for image in 0..fixtures.metas("single_img_metas").len() {
        let stored = fixtures.tensors(&format!("eval_single{image}"));
        let scores = tch::no_grad(|| {
            let features = backbone(&model, &data.get(&format!("single_img.{image}")));
            let levels = model.neck.forward(&features).unwrap();
            head.bbox.forward(&head.bbox_extractor.forward(&levels, &stored.get("rois")).unwrap()).unwrap().0
        });
        let what = "scores of all proposals of a single image";
        fixtures.compare("box head").tensor(what, &scores, &stored.get("cls_score"), STAGE);
    }
}

#[test]
fn parity_mask_head() {
    let Some(heads) = Heads::open() else { return };
    let (head, stored, compare) = (&heads.model.roi_head, &heads.stored, heads.fixtures.compare("mask head"));
    let _guard = tch::no_grad_guard();
    let own = head.mask_extractor.forward(&heads.levels, &heads.mask_rois()).unwrap();
    let features = stored_or(stored, "mask_feats", own);
    let expected = stored.get("mask_logits");
    let (rois, kept_classes, ..) = expected.size4().unwrap();
    assert_eq!(rois, features.size()[0]);
    let classes = kept("classes of mask_logits", heads.fixtures.config().num_classes as i64, kept_classes);
    for (place, class) in (0..).zip(classes) {
        let labels = Tensor::full([rois], class, (Kind::Int64, Device::Cpu));
        let logits = head.mask.as_ref().unwrap().forward(&features, &labels).unwrap();
        compare.tensor("logits of every class", &logits, &expected.select(1, place), STAGE);
    }
}

#[test]
fn parity_mask_head_of_the_detections() {
    let Some(heads) = Heads::open() else { return };
    let (head, stored, compare) = (&heads.model.roi_head, &heads.stored, heads.fixtures.compare("mask head"));
    let _guard = tch::no_grad_guard();
    let images = heads.fixtures.metas("img_metas").len();
    let labels = Tensor::cat(&stored.series("det_labels", images), 0);
    let (rois, expected) = (stored.get("det_mask_rois"), stored.get("det_mask_logits"));
    let rows = |tensor: &Tensor| {
        let rows = kept("det_mask_logits", tensor.size()[0], expected.size()[0]);
        tensor.index_select(0, &Tensor::from_slice(&rows))
    };
    let features = head.mask_extractor.forward(&heads.levels, &rows(&rois)).unwrap();
    let logits = head.mask.as_ref().unwrap().forward(&features, &rows(&labels)).unwrap();
    compare.tensor("logits of the detections' own classes", &logits, &expected, STAGE);
}
