use tch::{Device, Tensor};

use fnet_config::Config;
use fnet_model::MaskRcnn;

use super::*;
use fnet_test_support::fixture;

/// The model of the small MMDetection detector, with `classes` classes.
fn model(classes: usize) -> Parameters {
    let mut config = Config::default().model;
    config.num_classes = classes;
    config.backbone.embed_dim = 32;
    config.backbone.depths = [1, 1, 2, 1];
    config.neck.out_channels = 64;
    config.rpn.feat_channels = 64;
    config.roi_head.bbox_fc_channels = 128;
    config.roi_head.mask_channels = 64;
    let mut parameters = Parameters::new();
    MaskRcnn::new(&config, &mut parameters, Device::Cpu, 0).unwrap();
    parameters
}

#[test]
fn an_mmdetection_detector_loads_completely_only_with_the_same_classes() {
    let Some(reference) = fixture("reference") else { return };
    let weights = Weights::open(&reference.join("fixtures_tiny/ckpt.pth")).unwrap();
    let parameters = model(5);
    let summary = weights.load_detector(&parameters, Need::All).unwrap();
    assert!(summary.report.is_complete() && summary.report.loaded.len() == 126);
    assert!(summary.to_string().ends_with("ckpt.pth; new: 0; unused: 0"), "{summary}");
    for (name, _, tensor) in parameters.iter() {
        assert_eq!(tensor, &weights.tensor(name).unwrap(), "{name}");
    }

    let other = model(7);
    let before: Vec<Tensor> = other.iter().map(|(_, _, tensor)| tensor.detach_copy()).collect();
    for need in [Need::All, Need::Most] {
        let error = weights.load_detector(&other, need).unwrap_err().to_string();
        assert!(error.contains("for 5 classes") && error.contains("num_classes is 7"), "{error}");
    }
    assert!(other.iter().zip(&before).all(|((_, _, now), before)| now == before), "an error changes nothing");
    let report = weights.load_detector(&other, Need::Any).unwrap().report;
    assert_eq!((report.loaded.len(), report.conflicts.len()), (120, 6));

    // A training may start with other classes, but not with other layers.
    let names: Vec<String> = (0..7).map(|class| format!("class {class}")).collect();
    let classes = Classes { file: &weights.meta().classes, model: &names, match_names: false };
    let summary = weights.load_to_train(&model(7), Need::Most, classes).unwrap();
    assert_eq!((summary.report.loaded.len(), summary.report.conflicts.len()), (120, 6));
    assert!(summary.to_string().contains("are re-initialized, for 7 classes in place of 5"), "{summary}");
    let matched =
        Classes { model: &[vec![weights.meta().classes[2].clone()], names[..6].to_vec()].concat(), ..classes };
    let summary = weights.load_to_train(&other, Need::Most, Classes { match_names: true, ..matched }).unwrap();
    assert!(summary.report.is_complete() && summary.report.loaded.len() == 126, "{summary}");
    let name = "roi_head.bbox_head.fc_cls.weight";
    let [own, stored] = [other.get(name).unwrap().shallow_clone(), weights.tensor(name).unwrap()];
    assert_eq!(own.get(0), stored.get(2));
    assert_eq!(own.get(7), stored.get(5), "the background");
}

#[test]
fn a_classifier_loads_the_backbone_except_its_last_norms() {
    let Some(reference) = fixture("reference") else { return };
    let weights = Weights::open(&reference.join("fixtures_tiny/cls_tiny.pth")).unwrap();
    let parameters = model(5);
    let report = weights.load_backbone(&parameters, Need::Most).unwrap().report;
    assert_eq!(report.unexpected, ["avgpool_pre_head.1.weight", "head.weight", "head.bias"]);
    assert_eq!(report.missing.len(), 16);
    assert!(report.missing.iter().all(|name| name.starts_with("backbone.norm")), "{:?}", report.missing);
    let name = "patch_embed.proj.weight";
    assert_eq!(parameters.get(&format!("backbone.{name}")).unwrap(), &weights.tensor(name).unwrap());
    let error = weights.load_detector(&parameters, Need::Most).unwrap_err().to_string();
    assert!(error.contains("model.backbone.pretrained"), "{error}");
    assert_eq!(weights.load_detector(&parameters, Need::Any).unwrap().report.loaded.len(), 0);
}

#[test]
fn names_of_a_file_are_shortened_and_escaped() {
    assert_eq!(printable("a\x1b[2J\n"), "a\\u{1b}[2J\\n");
    assert_eq!(printable(&"x".repeat(1000)).len(), 103);
    let names: Vec<String> = (0..9).map(|layer| format!("l{layer}.weight")).collect();
    assert_eq!(abridge(&names), "l0, l1, l2, l3, l4, l5, ...");
}
