//! The manifests for Kubernetes: their fields are those of the operators, and what is in them fits fnet-launch.

use std::path::Path;
use std::process::Command;

use fnet_protocol::cli::{Launch, LaunchCommand};
use fnet_protocol::work_dir;
use serde_json::Value;

use crate::outputs::files;
use crate::support::{finish, python_tool};

/// Checks manifests with the models that the operators publish, and prints them as JSON.
const CHECK: &str = r#"
import importlib.util, json, re, sys, types
from importlib.metadata import distribution
import kubeflow_trainer_api.models as models
import yaml

# The SDK of the training operator is installed without what it depends on; only its tables of fields are read here.
for name in ["six", "kubeflow", "kubeflow.training", "kubeflow.training.configuration"]:
    sys.modules[name] = types.ModuleType(name)
sys.modules["kubeflow.training.configuration"].Configuration = None

def of_operator(kind):
    words = re.sub("(?<!^)(?=[A-Z][a-z])|(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    path = distribution("kubeflow-training").locate_file(f"kubeflow/training/models/{words}.py")
    spec = importlib.util.spec_from_file_location(words, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, kind)

def check(value, kind, at):
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return [check(item, inner[1], f"{at}.{key}") for key, item in value.items()]
    if kind in ("str", "int"):
        assert type(value).__name__ == kind, f"{at}: {value!r} is not of type {kind}"
    elif kind.startswith("Kubeflow"):
        kinds = of_operator(kind)
        fields = {key: kinds.openapi_types[name] for name, key in kinds.attribute_map.items()}
        assert value.keys() <= fields.keys(), f"{at}: {value.keys() - fields.keys()} unknown"
        for key, item in value.items():
            check(item, fields[key], f"{at}.{key}")
    else:
        pods = {"V1ObjectMeta": "IoK8sApimachineryPkgApisMetaV1ObjectMeta", "V1PodTemplateSpec": "IoK8sApiCoreV1PodTemplateSpec"}
        model = getattr(models, pods.get(kind, kind))
        # Fields that it does not know are lost.
        assert model.from_dict(value).to_dict() == value, f"{at} has unknown fields"

KINDS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): "JobsetV1alpha2JobSet",
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): "TrainerV1alpha1TrainingRuntime",
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "TrainerV1alpha1TrainJob",
    ("kubeflow.org/v1", "PyTorchJob"): "KubeflowOrgV1PyTorchJob",
}
found = []
for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        check(document, KINDS[document["apiVersion"], document["kind"]], document["kind"])
        found.append(document)
print(json.dumps(found))
"#;

fn launch(words: &[&str]) -> Launch {
    let line = ["fnet-launch"].iter().chain(words).map(Into::into);
    Launch::from_arguments(line).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Calls `found` for each field of the name.
fn each<'a>(value: &'a Value, name: &str, found: &mut impl FnMut(&'a Value)) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            if key == name {
                found(value);
            }
            each(value, name, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| each(item, name, found)),
        _ => {}
    }
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_manifests_have_the_fields_of_their_operators_and_lines_that_are_accepted() {
    let Some(python) = python_tool("python") else { return };
    let manifests = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kubernetes"), ".yaml");
    let mut command = Command::new(python);
    command.args(["-c", CHECK]).args(manifests);
    let ended = finish(command);
    ended.expect(0, &[]);
    let documents: Value = serde_json::from_str(&ended.stdout).unwrap();

    let (mut jobs, mut probes, mut pods) = (Vec::new(), Vec::new(), 0);
    each(&documents, "args", &mut |args| match launch(&words(args)).command {
        LaunchCommand::Worker(command) => jobs.push(command),
        other => panic!("{other:?}"),
    });
    each(&documents, "command", &mut |line| match launch(&words(line)[1..]).command {
        LaunchCommand::Status(status) if status.check => probes.push(status.work_dir),
        other => panic!("{other:?}"),
    });
    let folder = work_dir::work_dir(Path::new("cfg.toml"), None);
    assert_eq!((jobs.len(), probes), (4, vec![folder; 8]));
    let grace = launch(&["train", "cfg.toml"]).options.grace;
    each(&documents, "terminationGracePeriodSeconds", &mut |seconds| {
        assert!(seconds.as_f64().unwrap() >= 2.0 * grace);
        pods += 1;
    });
    assert_eq!(pods, 4);
}
