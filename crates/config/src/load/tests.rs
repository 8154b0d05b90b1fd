use super::*;
use crate::Amp;

/// A temporary folder with these files, by their paths in it.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// For configs with a list of class names.
fn no_classes(_: &Path) -> Result<Vec<String>> {
    panic!("the class names of a data set are not needed")
}

fn sets(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn set(text: &str) -> Result<Resolved> {
    Resolved::from_toml("", "test", &sets(&[text]), &no_classes)
}

fn message(result: Result<Resolved>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind, fnet_protocol::message::FailureKind::Usage, "{error}");
    error.to_string()
}

#[test]
fn later_bases_override_earlier_ones_and_the_file_overrides_both() {
    let dir = folder(&[
        ("base/a.toml", "[optimizer]\nlr = 1.0\nmomentum = 0.1\neps = 1e-3\n"),
        ("base/b.toml", "optimizer.lr = 2.0\noptimizer.momentum = 0.2\n"),
        ("job.toml", "base = [\"base/a.toml\", \"base/b.toml\"]\n[optimizer]\nlr = 3.0\n"),
    ]);
    let resolved = load(dir.path().join("job.toml"), &[], &no_classes).unwrap();
    let optimizer = &resolved.config.optimizer;
    assert_eq!((optimizer.lr, optimizer.momentum, optimizer.eps), (3.0, 0.2, 1e-3));
    assert_eq!(resolved.name, "job");
    assert!(resolved.origins["optimizer.eps"].to_string().ends_with("a.toml:4"));
    assert_eq!(resolved.origins["optimizer.weight_decay"], Origin::Default);
}

#[test]
fn two_bases_may_share_a_base() {
    let dir = folder(&[
        ("root.toml", "train.epochs = 5"),
        ("a.toml", "base = \"root.toml\""),
        ("b.toml", "base = [\"root.toml\"]"),
        ("job.toml", "base = [\"a.toml\", \"b.toml\"]"),
    ]);
    assert_eq!(load(dir.path().join("job.toml"), &[], &no_classes).unwrap().config.train.epochs, 5);
}

#[test]
fn circular_bases_are_an_error_that_shows_the_chain() {
    let dir = folder(&[("a.toml", "base = [\"b.toml\"]"), ("b.toml", "base = [\"a.toml\"]")]);
    let text = message(load(dir.path().join("a.toml"), &[], &no_classes));
    let chain = text.split("circular base configs: ").nth(1).unwrap();
    let names: Vec<&str> = chain.split(" -> ").map(|path| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.toml", "b.toml", "a.toml"]);
}

#[test]
fn a_missing_base_is_reported_with_its_referrer_and_a_similar_file() {
    let dir = folder(&[("schedule_1x.toml", ""), ("a.toml", "\nbase = [\"schedul_1x.toml\"]")]);
    let text = message(load(dir.path().join("a.toml"), &[], &no_classes));
    assert!(text.contains("a.toml:2") && text.contains("did you mean") && text.contains("schedule_1x.toml"), "{text}");
}

#[test]
fn all_unknown_fields_are_reported_with_position_and_similar_name() {
    let dir =
        folder(&[("a.toml", "[optimizer]\nlr = 1.0\nweigth_decay = 0.1\n[model.backbone]\ndepth = [1, 1, 1, 1]\n")]);
    let text = message(load(dir.path().join("a.toml"), &[], &no_classes));
    assert!(
        text.contains("a.toml:3:1: unknown field `optimizer.weigth_decay`; did you mean `optimizer.weight_decay`?")
    );
    assert!(text.contains("a.toml:5:1: unknown field `model.backbone.depth`; did you mean `model.backbone.depths`?"));
}

#[test]
fn wrong_types_and_ranges_are_reported_with_position_value_and_expectation() {
    let dir =
        folder(&[("a.toml", "data.samples_per_gpu = 0\n[optimizer]\nlr = \"fast\"\nkind = \"adam\"\nbetas = [0.9]\n")]);
    let text = message(load(dir.path().join("a.toml"), &[], &no_classes));
    for part in [
        "a.toml:1:6: data.samples_per_gpu is 0; expected a whole number of at least 1",
        "a.toml:3:1: optimizer.lr is \"fast\"; expected a number of at least 0",
        "a.toml:4:1: optimizer.kind is \"adam\"; expected one of \"adamw\", \"sgd\"; did you mean \"adamw\"?",
        "a.toml:5:1: optimizer.betas is [0.9]; expected a list of 2 numbers",
    ] {
        assert!(text.contains(part), "{text}\nlacks\n{part}");
    }
}

#[test]
fn a_table_in_place_of_a_value_and_the_reverse_are_errors() {
    assert!(
        message(Resolved::from_toml("model = 3", "x", &[], &no_classes))
            .contains("x:1:1: model is 3; expected a table")
    );
    assert!(
        message(Resolved::from_toml("[optimizer.lr]\na = 1", "x", &[], &no_classes))
            .contains("optimizer.lr is a table")
    );
}

#[test]
fn part_of_a_nested_section_can_be_set_alone() {
    let config = set("model.rpn.sampler.count=128").unwrap().config;
    assert_eq!(config.model.rpn.sampler.count, 128);
    assert_eq!(config.model.rpn.sampler.positive_fraction, 0.5);
    assert!(!set("data.train.ann_file=a.json").unwrap().config.data.val.filter_empty);
}

#[test]
fn override_values_are_toml_and_strings_need_no_quotes() {
    assert_eq!(set("optimizer.lr=1e-3").unwrap().config.optimizer.lr, 1e-3);
    assert_eq!(set("data.train.ann_file=a b=c.json").unwrap().config.data.train[0].ann_file, "a b=c.json");
    assert_eq!(set("data.root=2017").unwrap().config.data.root, "2017");
    assert_eq!(set("data.root=\"2017\"").unwrap().config.data.root, "2017");
    assert_eq!(set("train.amp=bf16").unwrap().config.train.amp, Amp::Bf16);
    assert_eq!(set("data.pipeline.scales=[[640, 480]]").unwrap().config.data.pipeline.scales, [[640, 480]]);
    assert_eq!(set("data.val={ann_file = \"v.json\"}").unwrap().config.data.val.ann_file, "v.json");
}

#[test]
fn fields_of_older_checkpoints_are_read_under_their_new_names() {
    for (former, amp) in [("fp32", Amp::Off), ("bf16", Amp::Bf16), ("fp16", Amp::Fp16)] {
        let text = format!("[train]\nprecision = \"{former}\"\nepochs = 3\n");
        let train = Config::from_toml(&text, "old.ckpt").unwrap().train;
        assert_eq!((train.amp, train.epochs), (amp, 3));
    }
    assert!(
        message(set("train.precision=bf16")).contains("unknown field `train.precision`"),
        "only configs of checkpoints may use the old name"
    );
}

#[test]
fn the_alias_for_pretrained_weights_takes_effect() {
    let resolved = set("model.pretrained=fasternet_t0-epoch=281-val_acc1=71.9180.pth").unwrap();
    assert_eq!(resolved.config.model.backbone.pretrained, "fasternet_t0-epoch=281-val_acc1=71.9180.pth");
    assert!(matches!(resolved.origins["model.backbone.pretrained"], Origin::Set(_)));
}

#[test]
fn later_overrides_win_and_are_the_origin() {
    let resolved = Resolved::from_toml("", "x", &sets(&["train.epochs=2", "train.epochs=3"]), &no_classes).unwrap();
    assert_eq!(resolved.config.train.epochs, 3);
    assert_eq!(resolved.origins["train.epochs"].to_string(), "--set train.epochs=3");
}

#[test]
fn invalid_overrides_are_reported_with_an_example() {
    assert!(message(set("optimizer.lr")).contains("expected key=value"));
    assert!(message(set("=3")).contains("the key is empty"));
    assert!(message(set("data.classes=[cat, dog]")).contains("strings in a list need quotes"));
    assert!(message(set("lr=3")).contains("did you mean `optimizer.lr`?"));
    assert!(message(set("train.epochs=")).contains("not valid TOML"));
    assert!(message(set("train.deterministic=True")).contains("expected true or false"));
}

#[test]
fn invalid_combinations_are_reported_with_the_position_of_the_value() {
    let text = message(Resolved::from_toml("[model.neck]\nnum_outs = 4\n", "x", &[], &no_classes));
    assert!(text.contains("model.rpn.anchor_strides is [4, 8, 16, 32, 64]; expected [4, 8, 16, 32]"), "{text}");
    let text = message(Resolved::from_toml("\ndata.classes = [\"a\", \"b\"]", "x", &[], &no_classes));
    assert!(text.contains("x:2:6: data.classes") && text.contains("set model.num_classes to 2"), "{text}");
    assert!(message(set("checkpoint.save_best=mAP")).contains("bbox_mAP"));
    assert!(message(set("data.pipeline.scale_mode=range")).contains("two scales"));
    assert!(message(set("data.pipeline.scales=[[800, 1333]]")).contains("long side first"));
    assert!(message(set("model.rpn.assigner.negative_iou=0.9")).contains("at most model.rpn.assigner.positive_iou"));
    assert!(message(set("schedule.steps=[11, 8]")).contains("ascending order"));
    assert!(message(set("evaluation.metrics=[]")).contains("at least one metric"));
    assert!(message(set("evaluation.iou_thrs=[0.75, 0.5]")).contains("ascending numbers"));
    assert!(message(set("evaluation.iou_thrs=[0.5, 1.5]")).contains("at most 1"));
    assert!(message(set("evaluation.proposal_nums=[100, 100]")).contains("ascending numbers"));
    assert!(message(set("evaluation.proposal_nums=[]")).contains("not empty"));
    assert!(message(set("evaluation.metric_items=[\"AR@10\"]")).contains("AR@100, AR@300, AR@1000, AR_s@1000"));
    assert!(message(set("model.backbone.n_div=3")).contains("a multiple of model.backbone.n_div"));
}

#[test]
fn slicing_is_for_inference_only() {
    let config = set("model.backbone.partial_conv=slicing").unwrap().config;
    let text = config.validate_for_training().unwrap_err().to_string();
    assert!(text.contains("model.backbone.partial_conv is \"slicing\"") && text.contains("split_cat"), "{text}");
}

#[test]
fn a_config_from_a_checkpoint_cannot_have_bases() {
    assert!(
        message(Resolved::from_toml("base = [\"a.toml\"]", "c.ckpt", &[], &no_classes))
            .contains("unknown field `base`")
    );
}

#[test]
fn the_learning_rate_scales_with_the_effective_batch() {
    let mut config = Config::default();
    config.train.accumulate = 2;
    assert_eq!(config.effective_batch(2), 8);
    assert_eq!(config.optimizer.auto_scale_lr(config.effective_batch(2)), 1e-4);
}

proptest::proptest! {
    #[test]
    fn no_override_panics(text in "[a-z.=\\[\\]{}\"' 0-9]{0,30}") {
        let _ = set(&text);
    }
}

#[test]
fn tables_with_names_of_the_user_are_read_merged_and_checked() {
    let text = "[optimizer.paramwise.custom_keys]\nneck = { lr_mult = 2 }\n\"backbone.norm0\" = { decay_mult = 0.0 }\n";
    let read = |sets_of: &[&str]| Resolved::from_toml(text, "a.toml", &sets(sets_of), &no_classes);
    let set = ["optimizer.paramwise.custom_keys.neck.decay_mult=0.5"];
    let keys = read(&set).unwrap().config.optimizer.paramwise.custom_keys;
    let found: Vec<_> = keys.iter().map(|(key, of)| (key.as_str(), of.lr_mult, of.decay_mult)).collect();
    assert_eq!(found, [("backbone.norm0", 1.0, 0.0), ("neck", 2.0, 0.5)]);

    for (value, expected) in [
        ("optimizer.paramwise.custom_keys.neck.lr_mult=-1", "neck.lr_mult is -1; expected a number of at least 0"),
        (
            "optimizer.paramwise.custom_keys.neck.lr=1",
            "unknown field `optimizer.paramwise.custom_keys.neck.lr`; expected",
        ),
        ("optimizer.paramwise.custom_keys.neck=1", "neck is not a table; expected a table with a table of"),
        ("optimizer.paramwise.custom_keys=1", "custom_keys is 1; expected a table with a table of"),
    ] {
        let error = message(read(&[value]));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn names_of_other_programs_lead_to_fields_that_exist() {
    for hint in hints::HINTS {
        let right = hint.right.strip_prefix("--set ").unwrap_or(hint.right);
        let field = right.split('=').next().unwrap();
        assert!(field.starts_with("--") || fields::all().contains_key(field), "{} is not a field", hint.right);
        if right.contains('=') {
            set(right).unwrap();
        }
        for wrong in hint.wrong.split(' ') {
            assert!(!fields::all().contains_key(wrong), "{wrong} is a field");
            if !wrong.starts_with("--") {
                let error = message(set(&format!("{wrong}=1")));
                assert!(error.contains(&hint.text()), "{error}");
            }
        }
    }
    for (field, wrong, right) in hints::WORDS {
        set(&format!("{field}={right}")).unwrap();
        assert!(message(set(&format!("{field}={wrong}"))).ends_with(&format!("use \"{right}\"")), "{field} {wrong}");
    }
}

#[test]
fn a_section_of_another_program_is_answered_field_by_field() {
    let dir = folder(&[("a.toml", "[runner]\ntype = \"EpochBasedRunner\"\nmax_epochs = 12\n[zzz]\nb = 1\n")]);
    let text = message(load(dir.path().join("a.toml"), &[], &no_classes));
    assert!(text.contains("a.toml:3:1: unknown field `runner.max_epochs`; use `train.epochs`"), "{text}");
    assert!(text.contains("a.toml:2:1: unknown field `runner.type`;"), "{text}");
    assert!(text.contains("unknown field `zzz`; the sections are model"), "{text}");
}

fn train_list(list: &str) -> Result<Resolved> {
    set(&format!("data.pipeline.train=[{list}]"))
}

#[test]
fn augmentations_are_read_from_both_kinds_of_lists_and_survive_a_checkpoint() {
    let text = "data.pipeline.train = [{kind = \"flip\", directions = [\"diagonal\"]}, {kind = \"resize\"}]";
    let inline = Resolved::from_toml(text, "x", &[], &no_classes).unwrap().config;
    let text = "[[data.pipeline.train]]\nkind = \"flip\"\ndirections = [\"diagonal\"]\n[[data.pipeline.train]]\nkind = \"resize\"";
    assert_eq!(Resolved::from_toml(text, "x", &[], &no_classes).unwrap().config, inline);
    let kinds = "{kind=\"resize\"}, {kind=\"random_crop\", crop_type=\"absolute_range\", crop_size=[384, 600]}, \
        {kind=\"color_jitter\"}, {kind=\"pad\", size=[600, 600]}, {kind=\"copy_paste\", selected=false}, {kind=\"flip\"}";
    let config = train_list(kinds).unwrap().config;
    assert_eq!(config.data.pipeline.train.len(), 6);
    let mut read = Config::from_toml(&config.to_toml().unwrap(), "a.ckpt").unwrap();
    read.data.root.clone_from(&config.data.root);
    assert_eq!(read, config);
    assert_eq!(Config::default().differences(&config).unwrap().len(), 1);
}

#[test]
fn wrong_augmentations_are_reported_with_their_place_in_the_list() {
    for (list, expected) in [
        ("1", "train[0] is 1; expected a table whose `kind` is one of \"resize\", \"flip\""),
        ("{size = [3, 3]}", "train[0] is { size = [3, 3] }; expected a table whose `kind` is one of"),
        ("{kind = \"flip\"}, {kind = \"crop\"}", "train[1].kind is \"crop\"; expected one of"),
        ("{kind = \"random_crp\"}", "did you mean \"random_crop\"?"),
        (
            "{kind = \"flip\", probability = 0.5}",
            "train[0].probability is 0.5; expected a field of the kind \"flip\", one of",
        ),
        ("{kind = \"flip\", probability = 0.5}", "did you mean \"probabilities\"?"),
        (
            "{kind = \"flip\", probabilities = [2.0]}",
            "train[0].probabilities is [2.0]; expected a list, not empty, of numbers of at least 0",
        ),
        ("{kind = \"flip\", directions = [\"left\"]}", "one of \"horizontal\", \"vertical\", \"diagonal\""),
        (
            "{kind = \"pad\", size = [0, 9]}",
            "train[0].size is [0, 9]; expected a list of 2 whole numbers of at least 1",
        ),
        (
            "{kind = \"resize\"}, {kind = \"flip\", probabilities = [0.5, 0.2]}",
            "train[1].probabilities is [0.5, 0.2]; expected 1 numbers",
        ),
        (
            "{kind = \"resize\"}, {kind = \"flip\", probabilities = [0.5, 0.6], directions = [\"vertical\", \"diagonal\"]}",
            "a sum of at most 1",
        ),
        (
            "{kind = \"resize\", ratio_range = [2.0, 0.1]}",
            "train[0].ratio_range is [2.0, 0.1]; expected the smaller number first",
        ),
        ("{kind = \"resize\", scales = [[9, 9], [8, 8]], ratio_range = [0.1, 2.0]}", "one scale, because ratio_range"),
        ("{kind = \"resize\", scales = [[800, 1333]]}", "long side first"),
        ("{kind = \"resize\", scale_mode = \"range\"}", "two scales"),
        ("{kind = \"random_crop\", crop_size = [0.5, 0.5]}", "set crop_type to \"relative\""),
        (
            "{kind = \"resize\"}, {kind = \"random_crop\", crop_type = \"relative\", crop_size = [500, 500]}",
            "set crop_type to \"absolute\"",
        ),
        ("{kind = \"random_crop\", crop_type = \"absolute_range\", crop_size = [900, 300]}", "smaller number first"),
        ("{kind = \"color_jitter\", contrast_range = [1.5, 0.5]}, {kind = \"resize\"}", "smaller number first"),
        ("{kind = \"flip\"}", "train is [\"flip\"]; expected an augmentation that limits the size of images"),
        (
            "{kind = \"resize\"}, {kind = \"pad\", size = [800, 1333]}",
            "expected at least [1333, 1333], the largest image",
        ),
        ("{kind = \"pad\"}", "nothing before limits their size"),
        (
            "{kind = \"resize\"}, {kind = \"copy_paste\"}",
            "train[1] is \"copy_paste\"; expected images of one size before it; put { kind = \"pad\"",
        ),
        (
            "{kind = \"resize\"}, {kind = \"pad\", size = [1333, 1333]}, {kind = \"copy_paste\"}, {kind = \"copy_paste\"}",
            "expected one `copy_paste` in the list",
        ),
    ] {
        let error = message(train_list(list));
        assert!(error.contains(expected) && error.contains("data.pipeline.train"), "{list}: {error}");
    }
    let text = message(Resolved::from_toml("data.classes = [{a = 1}]", "x", &[], &no_classes));
    assert!(text.contains("x:1:6: data.classes is [{ a = 1 }]; expected a list of strings"), "{text}");
}

#[test]
fn a_list_of_augmentations_replaces_the_fields_of_earlier_layers_and_contradicts_later_ones() {
    let list = "[[data.pipeline.train]]\nkind = \"resize\"\n";
    let dir = folder(&[
        (
            "base.toml",
            "[data.pipeline]\nscales = [[96, 64], [128, 96]]\nscale_mode = \"range\"\nflip_probability = 0.25\n",
        ),
        ("job.toml", &format!("base = \"base.toml\"\n{list}")),
        ("same.toml", &format!("data.pipeline.scales = [[96, 64]]\n{list}scales = [[96, 64]]")),
        ("other.toml", &format!("data.pipeline.scales = [[96, 64]]\n{list}")),
    ]);
    let read = |name: &str, sets_of: &[&str]| load(dir.path().join(name), &sets(sets_of), &no_classes);
    let pipeline = read("job.toml", &[]).unwrap().config.data.pipeline;
    assert_eq!((pipeline.train.len(), pipeline.scales, pipeline.flip_probability), (1, vec![[1333, 800]], 0.5));
    assert!(read("same.toml", &[]).is_ok());
    assert!(read("base.toml", &["data.pipeline.train=[{kind=\"resize\"}]"]).is_ok());
    assert_eq!(read("base.toml", &["data.pipeline.train=[]"]).unwrap().config.data.pipeline.scales.len(), 2);
    let error = message(read("other.toml", &[]));
    let expected = "data.pipeline.scales is [[96, 64]]; expected no value beside data.pipeline.train, which replaces it; \
                    remove it, and put its value into the entry of kind \"resize\"";
    assert!(error.contains("other.toml:1:15") && error.contains(expected), "{error}");
    let error = message(read("job.toml", &["data.pipeline.flip_probability=0.1"]));
    assert!(error.contains("--set data.pipeline.flip_probability=0.1: ") && error.contains("kind \"flip\""), "{error}");
}

#[test]
fn a_model_without_masks_is_evaluated_with_boxes() {
    let resolved = set("model.mask=false").unwrap();
    assert_eq!(resolved.config.evaluation.metrics, [crate::Metric::Bbox]);
    assert_eq!(resolved.origins["evaluation.metrics"].to_string(), "--set model.mask=false");
    assert!(resolved.config.data.boxes_only && !set("model.mask=true").unwrap().config.data.boxes_only);
    let stored = Config::from_toml(&resolved.config.to_toml().unwrap(), "a.ckpt").unwrap();
    assert_eq!((&stored.evaluation.metrics, stored.data.boxes_only), (&resolved.config.evaluation.metrics, true));

    let read = |more: &[&str]| Resolved::from_toml("model.mask = false", "a.toml", &sets(more), &no_classes);
    assert_eq!(
        read(&["evaluation.metrics=[\"proposal\"]"]).unwrap().config.evaluation.metrics,
        [crate::Metric::Proposal]
    );
    let error = message(read(&["evaluation.metrics=[\"bbox\",\"segm\"]"]));
    assert!(error.contains("evaluation.metrics is") && error.contains("because model.mask is false"), "{error}");
    let error = message(read(&["checkpoint.save_best=segm_mAP"]));
    assert!(error.contains("checkpoint.save_best") && error.contains("one of bbox_mAP, "), "{error}");
}

#[test]
fn relative_paths_are_found_from_any_folder() {
    let dir = folder(&[("configs/job.toml", "data.root = \"d\"\n"), ("d/train.json", ""), ("run/d/train.json", "")]);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let root = |result: Result<Resolved>| result.unwrap().config.data.root;
    let file = dir.path().join("configs/job.toml");
    let not_by_environment = std::env::var_os(DATA_ROOT).is_none();
    if not_by_environment {
        assert_eq!(root(load(&file, &[], &no_classes)), at("d"));
        let text = std::fs::read_to_string(&file).unwrap();
        let stored = |folders: &[PathBuf]| root(Resolved::from_checkpoint(&text, "a.ckpt", &[], folders, &no_classes));
        assert_eq!(stored(&[dir.path().join("run"), dir.path().to_owned()]), at("run/d"));
        assert_eq!(stored(&[dir.path().join("configs")]), "d");
    }
    assert_eq!(root(load(&file, &sets(&["data.root=d"]), &no_classes)), "d");
}
