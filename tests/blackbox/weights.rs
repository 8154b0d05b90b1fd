//! Import and export of third-party weights: PyTorch and MMDetection files with every command.

use std::fs;
use std::sync::LazyLock;

use crate::outputs::{Object, assert_same_metrics, differences, losses, series, tensors};
use crate::support::{Files, Scene, finish, skip, worker_program};

/// A job of one worker and one epoch; its checkpoint is `fnet/latest.ckpt`.
const SHORT: &str = "train cfg.toml --no-validate --work-dir fnet --set train.epochs=1";

/// What most tests here start from: a trained detector, `fnet/latest.ckpt`, the same as a PyTorch file, `fnet.pth`, and the
/// files of [`VARIANTS`] and [`OLDER`] where there is a Python with PyTorch.
static TRAINED: LazyLock<(Files, bool)> = LazyLock::new(|| {
    let scene = Scene::with_images(8, 8);
    scene.one(SHORT);
    scene.launch("export fnet/latest.ckpt fnet.pth --with-optimizer").expect(0, &[]);
    let has_variants = scene.python(&format!("{VARIANTS}{OLDER}")).is_some();
    (scene.files(""), has_variants)
});

fn trained() -> Scene {
    Scene::with_files(&TRAINED.0)
}

/// [`trained`], if it has the variants. Otherwise the test is skipped.
fn variants() -> Option<Scene> {
    let scene = trained();
    if !TRAINED.1 {
        skip("there is no Python with PyTorch");
    }
    TRAINED.1.then_some(scene)
}

/// Compares exports with the checkpoint's tensors in Python.
const COMPARE: &str = r#"
import collections, json, torch
from safetensors import safe_open
from safetensors.torch import load_file
fnet = load_file('fnet/latest.ckpt')
with safe_open('fnet/latest.ckpt', 'pt') as file:
    entries = [entry['name'] for entry in json.loads(file.metadata()['fnet.tensors'])]
names = [name.removeprefix('model.') for name in entries if name.startswith('model.')]
# By default, torch.load refuses everything that could run code.
whole = torch.load('fnet.pth')
assert list(whole) == ['meta', 'state_dict', 'optimizer'], list(whole)
state = whole['state_dict']
assert type(state) is collections.OrderedDict and list(state) == names
assert state._metadata['backbone.norm0'] == {'version': 2} and state._metadata['neck'] == {'version': 1}
def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
assert all(same(state[name], fnet['model.' + name]) for name in names)
light = torch.load('light.pth')
assert list(light) == ['meta', 'state_dict'] and all(same(light['state_dict'][name], state[name]) for name in names)
assert type(whole['meta']['CLASSES']) is tuple and len(whole['meta']['CLASSES']) == 8
assert whole['meta']['epoch'] == 1 and whole['meta']['iter'] == int(ITER)
plain = load_file('fnet.safetensors')
assert set(plain) == set(names) and all(same(plain[name], state[name]) for name in names)

torch.save(whole, 'again.pth')
torch.save(whole, 'older.pth', _use_new_zipfile_serialization=False)

trained = [name for name in names if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))]
parameters = [torch.nn.Parameter(state[name].clone()) for name in trained]
optimizer = torch.optim.AdamW(parameters, lr=1.0)
optimizer.load_state_dict(whole['optimizer'])
(group,) = optimizer.param_groups
assert group['betas'] == (0.9, 0.999) and group['eps'] == 1e-8 and group['weight_decay'] == 1e-4
assert group['initial_lr'] == 1e-3 and abs(group['lr'] - 1e-3) < 1e-15, group
kept = whole['optimizer']['state']
for index, name in enumerate(trained):
    steps = float(fnet['optimizer.step.' + name])
    assert (index in kept) == (steps > 0), name
    if steps > 0:
        assert same(kept[index]['step'], fnet['optimizer.step.' + name])
        assert same(kept[index]['exp_avg'], fnet['optimizer.exp_avg.' + name])
        assert same(kept[index]['exp_avg_sq'], fnet['optimizer.exp_avg_sq.' + name])
for parameter in parameters:
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
assert all(torch.isfinite(parameter).all() for parameter in parameters)

print(len(names), len(kept))
"#;

#[test]
fn an_export_has_every_tensor_and_torch_load_opens_it_by_default() {
    let scene = trained();
    scene.launch("export fnet/latest.ckpt light.pth").expect(0, &["wrote ", "light.pth"]);
    scene.launch("export fnet/latest.ckpt fnet.safetensors").expect(0, &["fnet.safetensors"]);
    let script = COMPARE.replace("ITER", &scene.steps(1).to_string());
    let Some(printed) = scene.python(&script) else { return };
    let counts: Vec<usize> = printed.split_whitespace().map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] > 80 && counts[1] > 50, "{counts:?}");

    // Files that Python saved again, in both formats, are read back bit for bit.
    for name in ["again", "older"] {
        scene.launch(&format!("export {name}.pth {name}_fnet.pth --with-optimizer --config cfg.toml")).expect(0, &[]);
        let [a, b] =
            ["fnet.pth".to_owned(), format!("{name}_fnet.pth")].map(|name| fs::read(scene.path(&name)).unwrap());
        assert!(a == b, "{name}");
    }
}

#[test]
fn the_moving_average_is_exported_for_inference_and_the_weights_for_training() {
    let scene = Scene::small();
    scene.one("train cfg.toml --no-validate --work-dir fnet --set train.epochs=1 train.ema=0.9");
    scene.launch("export fnet/latest.ckpt used.safetensors").expect(0, &["moving average"]);
    scene.launch("export fnet/latest.ckpt trained.pth --with-optimizer").expect(0, &["as they are trained"]);
    scene.launch("export trained.pth trained.safetensors").expect(0, &[]);
    let fnet = tensors(&scene.path("fnet/latest.ckpt"));
    let [used, trained] = ["used", "trained"].map(|name| tensors(&scene.path(&format!("{name}.safetensors"))));
    let name = "backbone.patch_embed.proj.weight";
    assert_eq!(used[name], fnet[&format!("ema.{name}")]);
    assert_eq!(trained[name], fnet[&format!("model.{name}")]);
    assert_ne!(used[name], trained[name]);
    let buffer = "backbone.patch_embed.norm.running_mean";
    assert_eq!(used[buffer], fnet[&format!("model.{buffer}")]);
}

#[test]
fn impossible_exports_are_refused_before_anything_is_written() {
    let scene = trained();
    scene.launch("export fnet/latest.ckpt out.onnx").expect(2, &["out.onnx", ".safetensors"]);
    scene.launch("export fnet/latest.ckpt out.safetensors --with-optimizer").expect(2, &["--with-optimizer"]);
    scene.launch("export none.ckpt out.pth").expect(3, &["none.ckpt: no such file"]);
    fs::write(scene.path("text.pth"), "PK, but no archive").unwrap();
    scene.launch("export text.pth out.pth").expect(3, &["text.pth", "damaged or incomplete"]);
    scene.launch("export fnet/latest.ckpt light.pth").expect(0, &[]);
    scene.launch("export light.pth out.pth --with-optimizer").expect(3, &["no optimizer state"]);
    scene.one("train cfg.toml --no-validate --work-dir sgd --set train.epochs=1 optimizer.kind=sgd");
    scene.launch("export sgd/latest.ckpt out.pth --with-optimizer").expect(3, &["no state of AdamW"]);
    fs::write(scene.path("wide.toml"), "base = [\"cfg.toml\"]\n[model.backbone]\nembed_dim = 16\n").unwrap();
    scene.launch("export light.pth out.pth --config wide.toml").expect(3, &["embed_dim 8", "embed_dim 16"]);
    assert!(!scene.path("out.pth").exists() && !scene.path("out.safetensors").exists());
}

#[test]
fn weights_give_the_same_detections_in_every_file_format() {
    let scene = trained();
    scene.launch("export fnet/latest.ckpt fnet.safetensors").expect(0, &[]);
    scene.one("test fnet/latest.ckpt --out a.json --metrics a.metrics.json");
    scene.one("predict fnet/latest.ckpt data/val --out painted_a");
    for (file, name) in [("fnet.pth", "b"), ("fnet.safetensors", "c")] {
        let ended =
            scene.two(&format!("test {file} --config cfg.toml --out {name}.json --metrics {name}.metrics.json"));
        assert!(ended.stderr.contains(&format!("tensors from {file}; new: 0; unused: 0")), "{}", ended.stderr);
        assert!(!ended.stderr.contains("Warning"), "{}", ended.stderr);
        for kind in ["bbox", "segm"] {
            let [a, b] =
                ["a", name].map(|name| fs::read_to_string(scene.path(&format!("{name}.{kind}.json"))).unwrap());
            assert!(a.len() > 1000, "there are detections to compare: {a}");
            assert_eq!(a, b, "{file} {kind}");
        }
        assert_same_metrics(&scene.path("a.metrics.json"), &scene.path(&format!("{name}.metrics.json")));
        scene.one(&format!("predict {file} data/val --config cfg.toml --out painted_{name}"));
        let [a, b] =
            ["a", name].map(|name| fs::read_to_string(scene.path(&format!("painted_{name}/results.json"))).unwrap());
        assert_eq!(a, b);
        let line = format!("benchmark infer cfg.toml {file} --max-iter 7 --json");
        let report: Object = serde_json::from_str(&scene.one(&line).stdout).unwrap();
        assert_eq!(report["images"], 2);
    }
}

#[test]
fn a_file_without_a_config_is_an_error_that_shows_the_command_to_run() {
    let scene = trained();
    let line = "fnet-launch --device cpu --nproc 2 test --config=CONFIG.toml fnet.pth";
    scene.launch("--device cpu --nproc 2 test fnet.pth").expect(2, &[line]);
    scene.launch("predict fnet.pth . --out painted").expect(2, &["predict --config=CONFIG.toml --out=painted"]);
    for command in ["test fnet.pth", "predict fnet.pth data/val --out painted"] {
        let mut worker = scene.command(&worker_program(), command);
        worker.env("FNET_DEVICE", "cpu");
        finish(worker).expect(2, &["--config=CONFIG.toml"]);
    }
    assert!(!scene.path("painted").exists());
    scene.launch("export fnet.pth fnet.safetensors").expect(0, &[]);
    scene.launch("--device cpu --nproc 1 test fnet.safetensors").expect(2, &["--config=CONFIG.toml"]);
}

/// Creates the files for the tests of loading from `fnet.pth`.
const VARIANTS: &str = r#"
import collections, copy, torch
whole = torch.load('fnet.pth')
state = whole['state_dict']
backbone = collections.OrderedDict(
    (name.removeprefix('backbone.'), tensor) for name, tensor in state.items()
    if name.startswith('backbone.') and not name.startswith('backbone.norm'))
backbone['avgpool_pre_head.1.weight'] = torch.zeros(1280, 64, 1, 1)
backbone['head.weight'] = torch.zeros(1000, 1280)
backbone['head.bias'] = torch.zeros(1000)
torch.save(backbone, 'imagenet.pth')
torch.save({'model': backbone}, 'under_model.pth', _use_new_zipfile_serialization=False)

# The names of FasterNet-T0.
t0 = collections.OrderedDict([('patch_embed.proj.weight', torch.zeros(40, 3, 4, 4))])
for stage, depth in ((0, 1), (2, 2), (4, 8), (6, 2)):
    for block in range(depth):
        t0[f'stages.{stage}.blocks.{block}.mlp.0.weight'] = torch.zeros(1)
torch.save(t0, 't0.pth')
torch.save({'some.layer.weight': torch.zeros(3), 'a.b\x1b[2J': torch.zeros(1)}, 'third_party.pth')

def changed(path, change):
    other = copy.deepcopy(whole)
    change(other)
    torch.save(other, path)

def parallel(other):
    other['state_dict'] = collections.OrderedDict(('module.' + name, t) for name, t in other['state_dict'].items())
changed('parallel.pth', parallel)

def fewer_classes(other):
    names = other['state_dict']
    for name in names:
        count = {'fc_cls': 6, 'fc_reg': 20, 'conv_logits': 5}.get(name.split('.')[2] if name.count('.') > 2 else '')
        if count:
            names[name] = names[name][:count].clone()
    other['meta']['CLASSES'] = tuple('abcde')
changed('five.pth', fewer_classes)

def renamed(other):
    other['meta']['CLASSES'] = ('dog',) + other['meta']['CLASSES'][1:]
changed('renamed.pth', renamed)
changed('miscounted.pth', lambda other: other['meta'].update(CLASSES=('cat', 'dog')))
changed('incomplete.pth', lambda other: other['state_dict'].pop('neck.fpn_convs.0.conv.bias'))
changed('no_optimizer.pth', lambda other: other.pop('optimizer'))
changed('no_meta.pth', lambda other: other.pop('meta'))
changed('half_batches.pth', lambda other: other['meta'].update(iter=2 * other['meta']['iter']))
changed('other_settings.pth', lambda other: other['optimizer']['param_groups'][0].update(weight_decay=0.05))
"#;

#[test]
fn a_pretrained_backbone_is_loaded_and_one_line_says_what_was_loaded() {
    let Some(scene) = variants() else { return };
    let fnet = tensors(&scene.path("fnet/latest.ckpt"));
    // Of other files, only names below `backbone.` are used.
    for (index, (file, key, unused)) in [
        ("imagenet.pth", "model.pretrained", "unused: 3 (avgpool_pre_head.1, head)"),
        ("under_model.pth", "model.backbone.pretrained", "unused: 3 (avgpool_pre_head.1, head)"),
        ("parallel.pth", "model.backbone.pretrained", "unused: 0"),
        ("fnet/latest.ckpt", "model.backbone.pretrained", "unused: 0"),
    ]
    .iter()
    .enumerate()
    {
        let new = if index < 2 {
            "new: 16 (backbone.norm0, backbone.norm2, backbone.norm4, backbone.norm6)"
        } else {
            "new: 0"
        };
        // Messages name the target of a link.
        let target = file.replace("latest", "epoch_1");
        let set = format!("--set {key}={file} train.epochs=1 optimizer.lr=0.0");
        let ended = scene.one(&format!("train cfg.toml --no-validate --work-dir run{index} {set}"));
        assert!(ended.stderr.contains(&format!("tensors from {target}; {new}; {unused}")), "{}", ended.stderr);
        let started = tensors(&scene.path(&format!("run{index}/latest.ckpt")));
        let equal = |name: &str| started[name] == fnet[name];
        assert!(
            equal("model.backbone.stages.4.blocks.0.mlp.0.weight") && equal("model.backbone.patch_embed.proj.weight")
        );
        assert!(!equal("model.neck.fpn_convs.0.conv.weight"), "only the backbone is loaded");
    }
}

#[test]
fn weights_of_another_model_are_refused_with_a_reason() {
    let Some(scene) = variants() else { return };
    let refused = |line: &str, texts: &[&str]| {
        scene.launch(&format!("--device cpu --nproc 1 {line}")).expect(3, texts);
    };
    let s = "--set model.backbone.embed_dim=128 model.backbone.depths=[1,2,13,2]";
    let names =
        ["FasterNet-T0 (embed_dim 40, depths [1, 2, 8, 2])", "FasterNet-S (embed_dim 128, depths [1, 2, 13, 2])"];
    refused(&format!("train cfg.toml {s} model.pretrained=t0.pth"), &names);
    refused(&format!("train cfg.toml {s} --load-from=t0.pth --allow-partial"), &names);
    refused(&format!("test t0.pth --config cfg.toml {s}"), &names);
    refused("train cfg.toml --load-from=imagenet.pth", &["model.backbone.pretrained"]);
    let ended = scene.launch("--device cpu --nproc 1 train cfg.toml --load-from=third_party.pth");
    ended.expect(3, &["only 0 of the model's", "some.layer.weight", "--allow-partial"]);
    assert!(!ended.stderr.contains('\x1b'), "a file must not control the terminal");
    refused("train cfg.toml --load-from no_meta.pth --match-classes", &["meta.CLASSES", "leave out --match-classes"]);
    refused("test five.pth --config cfg.toml", &["5 classes"]);
    refused("test incomplete.pth --config cfg.toml", &["neck.fpn_convs.0.conv.bias", "--allow-partial"]);
    refused("benchmark infer cfg.toml incomplete.pth --max-iter 6", &["neck.fpn_convs.0.conv.bias"]);
    refused("test miscounted.pth --config cfg.toml", &["names 2 classes"]);
    assert!(!scene.path("work_dirs/cfg/latest.ckpt").exists());
}

#[test]
fn allow_partial_loads_matching_weights() {
    let Some(scene) = variants() else { return };
    let job = "train cfg.toml --no-validate --allow-partial --set train.epochs=1 optimizer.lr=0.0";
    // Other classes need no --allow-partial.
    let ended = scene.one(&format!("{} --load-from=five.pth --work-dir five", job.replace("--allow-partial ", "")));
    ended.expect(0, &["the class layers are re-initialized, for 8 classes in place of 5"]);
    assert!(ended.stderr.contains("different shape: 6 (first: roi_head.bbox_head.fc_cls.weight"), "{}", ended.stderr);
    let [fnet, five] = ["fnet", "five"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    let equal = |name: &str| fnet[name] == five[name];
    assert!(equal("model.roi_head.bbox_head.shared_fcs.0.weight") && !equal("model.roi_head.bbox_head.fc_cls.weight"));
    let ended = scene.one(&format!("{job} --load-from=third_party.pth --work-dir third_party"));
    assert!(ended.stderr.contains("loaded 0 tensors from third_party.pth"), "{}", ended.stderr);
    let ended = scene.one("test incomplete.pth --config cfg.toml --allow-partial");
    assert!(ended.stderr.contains("new: 1 (neck.fpn_convs.0.conv)"), "{}", ended.stderr);
    let ended = scene.one(&format!("{job} --load-from=renamed.pth --work-dir renamed"));
    ended.expect(0, &["the file has other classes (number 0 is \"dog\"", "--match-classes"]);
    // Different class names are only reported.
    let ended = scene.one("test renamed.pth --config cfg.toml");
    assert!(ended.stderr.contains("number 0 was \"dog\""), "{}", ended.stderr);
}

/// Two epochs of one worker, with a learning rate that drops after the first.
const LONG: &str = "train cfg.toml --no-validate --set schedule.steps=[1]";

#[test]
fn a_job_resumes_from_an_mmdetection_checkpoint_as_from_its_own() {
    let scene = Scene::small();
    scene.one(&format!("{LONG} --work-dir whole"));
    scene.one(&format!("{LONG} train.epochs=1 --work-dir fnet"));
    scene.launch("export fnet/latest.ckpt fnet.pth --with-optimizer").expect(0, &[]);
    let ended = scene.one(&format!("{LONG} --work-dir parts --resume fnet.pth"));
    let expected = format!("resumed epoch 1, iter {} with AdamW's state: loaded", scene.steps(1));
    assert!(
        ended.stderr.contains(&expected) && ended.stderr.contains("from fnet.pth; new: 0; unused: 0"),
        "{}",
        ended.stderr
    );
    let whole = losses(&scene.path("whole"));
    assert_eq!(losses(&scene.path("parts")), whole[scene.steps(1)..]);
    let [a, b] = ["whole", "parts"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    assert_eq!(differences(&a, &b), Vec::<String>::new());

    // The imported state is saved in the job's own folder at the start.
    let [a, b] = ["fnet", "parts"].map(|name| tensors(&scene.path(name).join("epoch_1.ckpt")));
    assert_eq!(differences(&a, &b), Vec::<String>::new());
}

/// The same training state as MMDetection wrote it in data-parallel training with PyTorch 1.5 to 1.11.
const OLDER: &str = r#"
import collections, torch
whole = torch.load('fnet.pth')
for state in whole['optimizer']['state'].values():
    state['step'] = int(state['step'])
(group,) = whole['optimizer']['param_groups']
for name in ('maximize', 'foreach', 'capturable', 'differentiable', 'fused', 'decoupled_weight_decay'):
    del group[name]
whole['state_dict'] = collections.OrderedDict(
    ('module.' + name, tensor) for name, tensor in whole['state_dict'].items() if 'num_batches' not in name)
whole['meta'] = {'mmdet_version': '2.11.0', 'config': 'model = dict()', 'hook_msgs': {}, 'CLASSES': list(whole['meta']['CLASSES']),
                 'epoch': 1, 'iter': whole['meta']['iter']}
torch.save(whole, 'older.pth', _use_new_zipfile_serialization=False)
"#;

#[test]
fn a_checkpoint_of_an_older_pytorch_resumes_alike() {
    let Some(scene) = variants() else { return };
    let run = |name: &str| {
        scene.one(&format!("{LONG} --work-dir by_{name} --resume={name}.pth"));
        tensors(&scene.path(&format!("by_{name}/latest.ckpt")))
    };
    let differing = differences(&run("fnet"), &run("older"));
    assert!(differing.iter().all(|name| name.ends_with("num_batches_tracked")), "{differing:?}");
}

#[test]
fn every_rank_uses_the_running_statistics_of_the_file() {
    let scene = trained();
    let ended = scene.two(&format!("{LONG} --work-dir two --resume=fnet.pth"));
    let expected = format!("its epochs had {} iterations and this job's have {}", scene.steps(1), scene.steps(2));
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    let [fnet, two] = ["fnet/latest.ckpt", "two/epoch_1.ckpt"].map(|name| tensors(&scene.path(name)));
    let second: Vec<&String> = two.keys().filter(|name| name.starts_with("rank1.")).collect();
    assert!(second.len() >= 24, "{second:?}");
    for name in second {
        assert_eq!(two[name], fnet[&name.replace("rank1.", "model.")], "{name}");
    }
    assert_eq!(series(&scene.path("two"), "epoch").first(), Some(&2.0));
}

#[test]
fn mmdetection_checkpoints_that_cannot_be_resumed_say_why() {
    let Some(scene) = variants() else { return };
    let refused = |file: &str, set: &str, texts: &[&str]| {
        scene.launch(&format!("--device cpu --nproc 1 {LONG} {set} --resume={file}")).expect(3, texts);
    };
    refused("no_optimizer.pth", "", &["no_optimizer.pth", "no optimizer state", "--load-from"]);
    refused("no_meta.pth", "", &["no epoch and iter", "--load-from"]);
    refused("fnet.pth", "optimizer.kind=sgd", &["state of AdamW", "--load-from"]);
    refused("fnet.pth", "model.backbone.embed_dim=16", &["embed_dim 8", "embed_dim 16"]);
    refused("fnet.pth", "model.roi_head.bbox_fc_channels=16", &["roi_head.bbox_head"]);
    refused("incomplete.pth", "", &["1 missing (neck.fpn_convs.0.conv.bias)"]);
    scene.launch(&format!("--device cpu --nproc 1 {LONG} --resume=none.pth")).expect(3, &["none.pth: no such file"]);

    let ended = scene.one(&format!("{LONG} --work-dir settings --resume=other_settings.pth"));
    assert!(ended.stderr.contains("optimizer.weight_decay = 0.0001 (0.05)"), "{}", ended.stderr);
    let ended = scene.one(&format!("{LONG} --work-dir half --resume=half_batches.pth"));
    let (stored, own) = (2 * scene.steps(1), scene.steps(1));
    let expected = format!("had {stored} iterations and this job's have {own}, so iter {stored} becomes {own}");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
}

/// One group for each parameter, as MMCV writes them, with PyTorch's optimizer of such groups.
const GROUPS: &str = r#"
import torch
whole = torch.load('groups.pth')
state = whole['state_dict']
names = [name for name in state if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))]
groups = [{'params': [torch.nn.Parameter(state[name].clone())]} for name in names]
optimizer = torch.optim.AdamW(groups, lr=1.0)
optimizer.load_state_dict(whole['optimizer'])
for name, group in zip(names, optimizer.param_groups):
    factor = 0.5 if 'neck' in name else 1.0
    decay = 0.0 if 'norm' in name or '.mlp.1.' in name else 1e-4
    assert abs(group['initial_lr'] - factor * 1e-3) < 1e-12 and group['weight_decay'] == decay, (name, group)
kept = {names[index] for index in whole['optimizer']['state']}
assert kept == {name for name in names if not name.startswith('backbone.patch_embed')}, kept
print(len(names))
"#;

#[test]
fn multipliers_and_frozen_parameters_are_exported_as_mmdetection_writes_them() {
    let scene = Scene::small();
    let set = "model.frozen_stages=0 optimizer.paramwise.norm_decay_mult=0 \
               optimizer.paramwise.custom_keys.neck.lr_mult=0.5";
    scene.one(&format!("{SHORT} {set}"));
    scene.launch("export fnet/latest.ckpt groups.pth --with-optimizer").expect(0, &[]);
    if scene.python(GROUPS).is_none() {
        return;
    }
    let ended = scene.one(&format!("{LONG} {set} --work-dir again --resume=groups.pth"));
    assert!(!ended.stderr.contains("uses its own config"), "{}", ended.stderr);
}
