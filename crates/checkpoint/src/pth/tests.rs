use std::io::Write;

use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::export::pickler::Pickler;
use fnet_test_support::{fixture, run_python};

/// A script that saves the same object in every format and protocol.
const SAVE: &str = r#"
import argparse, collections, torch, numpy as np
class Odd(dict):
    pass
base = torch.arange(24, dtype=torch.float32)
state = collections.OrderedDict()
state['plain'] = base.reshape(4, 6)
state['view'] = base[3:15].reshape(3, 4).t()
state['last'] = torch.arange(60.).reshape(1, 3, 4, 5).to(memory_format=torch.channels_last)
for kind in ('float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool'):
    state[kind] = torch.tensor([[0, 1, 2], [3, 100, 0]]).to(getattr(torch, kind))
state['parameter'] = torch.nn.Parameter(torch.ones(3))
state['scalar'] = torch.tensor(7)
state['empty'] = torch.zeros(0, 3)
state._metadata = {'': {'version': 1}}
whole = {
    'state_dict': state, 'none': None, 'list': [1, (2, 'zwei'), {'k': 2.5}], 'big': 2 ** 70, 'size': torch.Size([2, 3]),
    'numpy': np.float32(0.25), 'numpy_int': np.int64(-5), 'array': np.arange(6, dtype='f8').reshape(2, 3, order='F'),
    'fortran': np.asfortranarray(np.arange(6, dtype='i4').reshape(2, 3)),
    'args': argparse.Namespace(lr=1), 'odd': Odd(a=1), 'set': {4}, 'bytes': b'\x00\xff', 'default': collections.defaultdict(list, {'x': [1]}),
    'device': torch.device('cpu'), 'dtype': torch.float16,
}
for protocol in (2, 3, 4, 5):
    torch.save(whole, f'zip{protocol}.pth', pickle_protocol=protocol)
    torch.save(whole, f'old{protocol}.pth', pickle_protocol=protocol, _use_new_zipfile_serialization=False)
torch.serialization.set_crc32_options(False)
torch.save(whole, 'unchecked.pth')
"#;

fn check_saved(value: &Value) {
    let tensor = |name: &str| value.at(&["state_dict", name]).unwrap().as_tensor().unwrap().load().unwrap();
    let base = Tensor::arange(24, (Kind::Float, Device::Cpu));
    assert_eq!(tensor("plain"), base.reshape([4, 6]));
    assert_eq!(tensor("view"), base.slice(0, 3, 15, 1).reshape([3, 4]).tr());
    assert_eq!(tensor("last"), Tensor::arange(60, (Kind::Float, Device::Cpu)).reshape([1, 3, 4, 5]));
    let values = Tensor::from_slice(&[0_i64, 1, 2, 3, 100, 0]).reshape([2, 3]);
    for (name, kind) in [
        ("float64", Kind::Double),
        ("float16", Kind::Half),
        ("bfloat16", Kind::BFloat16),
        ("int64", Kind::Int64),
        ("int32", Kind::Int),
        ("int16", Kind::Int16),
        ("int8", Kind::Int8),
        ("uint8", Kind::Uint8),
        ("bool", Kind::Bool),
    ] {
        let found = tensor(name);
        assert_eq!((found.kind(), &found), (kind, &values.to_kind(kind)), "{name}");
    }
    assert_eq!(tensor("parameter"), Tensor::ones([3], (Kind::Float, Device::Cpu)));
    assert_eq!(tensor("scalar"), Tensor::from(7_i64));
    assert_eq!(tensor("empty").size(), [0, 3]);
    let text = |path: &[&str]| format!("{:?}", value.at(path).unwrap());
    assert_eq!(text(&["none"]), "None");
    assert_eq!(text(&["list"]), r#"List([Int(1), Tuple([Int(2), Str("zwei")]), Dict([(Str("k"), Float(2.5))])])"#);
    assert_eq!(text(&["big"]), r#"Opaque("builtins.int")"#);
    assert_eq!(text(&["size"]), "Tuple([Int(2), Int(3)])");
    assert_eq!(text(&["numpy"]), "Float(0.25)");
    assert_eq!(text(&["numpy_int"]), "Int(-5)");
    let array = |name: &str| value.get(name).unwrap().as_tensor().unwrap().load().unwrap();
    assert_eq!(array("array"), Tensor::from_slice(&[0.0_f64, 2.0, 4.0, 1.0, 3.0, 5.0]).reshape([2, 3]));
    assert_eq!(array("fortran"), Tensor::from_slice(&[0_i32, 1, 2, 3, 4, 5]).reshape([2, 3]));
    assert_eq!(text(&["args"]), r#"Opaque("argparse.Namespace")"#);
    assert_eq!(text(&["odd", "a"]), "Int(1)");
    assert_eq!(text(&["set"]), "List([Int(4)])");
    assert_eq!(text(&["bytes"]), "Bytes([0, 255])");
    assert_eq!(text(&["default", "x"]), "List([Int(1)])");
    assert_eq!(text(&["device"]), r#"Opaque("torch.device")"#);
    assert_eq!(text(&["dtype"]), r#"Opaque("torch.float16")"#);
}

#[test]
fn files_of_both_formats_and_every_protocol_are_read() {
    let folder = tempfile::tempdir().unwrap();
    if !run_python(folder.path(), SAVE) {
        return;
    }
    for name in [2, 3, 4, 5].iter().flat_map(|number| [format!("zip{number}.pth"), format!("old{number}.pth")]) {
        eprintln!("{name}");
        check_saved(&open(&folder.path().join(name)).unwrap());
    }
    check_saved(&open(&folder.path().join("unchecked.pth")).unwrap());
}

#[test]
fn an_mmdetection_checkpoint_equals_its_safetensors_export() {
    let Some(reference) = fixture("reference") else {
        return;
    };
    let value = open(&reference.join("fixtures_tiny/ckpt.pth")).unwrap();
    let bytes = std::fs::read(reference.join("fixtures_tiny/ckpt.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let state = value.get("state_dict").unwrap().entries();
    assert_eq!((state.len(), expected.len()), (126, 126));
    for (name, tensor) in state {
        let (tensor, expected) = (tensor.as_tensor().unwrap(), expected.tensor(name.as_str().unwrap()).unwrap());
        let shape: Vec<i64> = expected.shape().iter().map(|&size| size as i64).collect();
        assert_eq!(tensor.size(), shape);
        crate::bytes::with_bytes(&tensor.load().unwrap(), |bytes| assert_eq!(bytes, expected.data()));
    }
    assert_eq!(value.at(&["meta", "epoch"]).unwrap().as_int(), Some(12));
    assert_eq!(value.at(&["meta", "CLASSES"]).unwrap().as_items().unwrap().len(), 5);
}

/// An archive with the given entries.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn opened(bytes: &[u8]) -> Result<Value> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}

/// A pickle of one tensor of ones, and its data.
fn small() -> (Vec<u8>, Vec<u8>) {
    let mut pickler = Pickler::new();
    pickler
        .dict(|pickler| {
            pickler.text("w");
            pickler.tensor(&Tensor::ones([300], (Kind::Float, Device::Cpu)))
        })
        .unwrap();
    (pickler.finish().0, 1.0_f32.to_le_bytes().repeat(300))
}

#[test]
fn a_repacked_archive_is_read() {
    let (pickle, data) = small();
    let entries = [("x/data.pkl", pickle.as_slice()), ("x/data/0", &data)];
    let value = opened(&archive(&entries, CompressionMethod::Deflated));
    // The folder is gone, but the open file still has its data.
    let tensor = value.unwrap().get("w").unwrap().as_tensor().unwrap().load().unwrap();
    assert_eq!(tensor, Tensor::ones([300], (Kind::Float, Device::Cpu)));
}

#[test]
fn missing_short_or_damaged_storages_are_refused() {
    let (pickle, mut data) = small();
    let refusal =
        |entries: &[(&str, &[u8])]| opened(&archive(entries, CompressionMethod::Stored)).unwrap_err().to_string();
    assert!(refusal(&[("x/data.pkl", &pickle)]).contains("no entry"));
    assert!(refusal(&[("x/data.pkl", &pickle), ("x/data/0", &data[..1196])]).contains("1196 bytes"));
    assert!(refusal(&[("x/other", &pickle)]).contains("data.pkl"));
    assert!(refusal(&[("x/data.pkl", &pickle), ("x/constants.pkl", b""), ("x/data/0", &data)]).contains("TorchScript"));
    assert!(refusal(&[("x/data.pkl", &pickle), ("x/byteorder", b"big"), ("x/data/0", &data)]).contains("endian"));
    let mut bytes = archive(&[("x/data.pkl", &pickle), ("x/data/0", &data)], CompressionMethod::Stored);
    data.truncate(8);
    let place = bytes.windows(8).position(|part| part == data).unwrap();
    bytes[place] ^= 1;
    let error = opened(&bytes).unwrap().get("w").unwrap().as_tensor().unwrap().load().unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn other_files_are_errors_that_say_what_was_expected() {
    for (bytes, expected) in [
        (&b""[..], "empty"),
        (b"GIF89a", "this is an image (GIF), not a checkpoint"),
        (b"\xff\xfe\x00\x01", "neither a zip archive nor a pickle"),
        (b"\x80\x02N.", "magic number"),
        (b"PK\x03\x04abc", "damaged or incomplete"),
    ] {
        let error = opened(bytes).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
    }
    assert!(open(Path::new("/no/such.pth")).is_err());
    assert!(open(Path::new("/")).unwrap_err().to_string().contains("this is a folder"));
}
