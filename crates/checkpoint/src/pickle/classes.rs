//! The known classes and functions of pickles.

use std::sync::Arc;

use tch::Kind;

use fnet_common::{Error, Result};

use super::arena::{Arena, BYTES_OF_AN_OBJECT, Id, Object};
use super::dtype::Dtype;
use super::numpy;
use super::storages::StorageId;
use crate::lazy::LazyTensor;

/// How many objects a tensor counts as; a short pickle can create one many times.
const OBJECTS_OF_A_TENSOR: usize = 16;

/// REDUCE: the result of `function` for `arguments`.
pub(super) fn call(arena: &mut Arena, function: Id, arguments: Id) -> Result<Id> {
    let name = name_of(arena, function)?;
    let arguments = match arena.get(arguments) {
        Object::Tuple(items) if items.len() <= 16 => items.clone(),
        _ => return opaque(arena, name),
    };
    call_named(arena, &name, &arguments, true)
}

fn call_named(arena: &mut Arena, name: &Arc<str>, arguments: &[Id], outermost: bool) -> Result<Id> {
    let first = arguments.first().copied();
    let short = name.rsplit_once('.').map_or("", |(module, function)| match module {
        "torch" | "torch._utils" | "torch._tensor" | "collections" | "builtins" | "__builtin__" | "_codecs"
        | "copyreg" | "copy_reg" => function,
        _ if numpy::is_module(module) => function,
        _ => "",
    });
    let object = match (short, first) {
        ("OrderedDict" | "dict" | "Counter" | "defaultdict", _) => dictionary(arena, short, first)?,
        ("_rebuild_parameter" | "_rebuild_parameter_with_state", Some(tensor)) => return Ok(tensor),
        ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", _) => {
            let tensor = tensor(arena, short, arguments)?;
            arena.spend(OBJECTS_OF_A_TENSOR)?;
            tensor
        }
        ("_rebuild_from_type_v2", Some(inner)) if outermost => {
            let inner = name_of(arena, inner)?;
            let parts = arguments.get(2).and_then(|&id| arena.items(id)).filter(|parts| parts.len() <= 16);
            match parts.map(<[Id]>::to_vec) {
                Some(parts) => return call_named(arena, &inner, &parts, false),
                None => None,
            }
        }
        ("Size" | "tuple", Some(items)) => copied(arena, items)?.map(Object::Tuple),
        ("list" | "set" | "frozenset", Some(items)) => copied(arena, items)?.map(Object::List),
        ("list" | "set" | "frozenset", None) => Some(Object::List(Vec::new())),
        ("tuple" | "Size", None) => Some(Object::Tuple(Vec::new())),
        ("bytearray" | "bytes", Some(bytes)) => match arena.get(bytes) {
            Object::Bytes(bytes) => Some(Object::Bytes(Arc::clone(bytes))),
            _ => None,
        },
        ("encode", Some(text)) => encoded(arena, text)?,
        ("_reconstructor", Some(class)) => return create(arena, class),
        ("_reconstruct", _) => Some(Object::EmptyArray),
        ("dtype", Some(code)) => arena.text(code).map(|code| Object::Dtype(Dtype::parse(code))),
        ("scalar", _) => numpy::scalar(arena, arguments),
        ("_frombuffer", _) => numpy::from_buffer(arena, arguments)?,
        _ => None,
    };
    match object {
        Some(object) => arena.add(object),
        None => opaque(arena, Arc::clone(name)),
    }
}

/// NEWOBJ: a new instance of `class`.
pub(super) fn create(arena: &mut Arena, class: Id) -> Result<Id> {
    let name = name_of(arena, class)?;
    match &*name {
        "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter" => {
            arena.add(Object::Dict(Vec::new()))
        }
        _ => opaque(arena, name),
    }
}

/// BUILD: sets the state of `target`. The state of unknown objects and subclasses is skipped.
pub(super) fn build(arena: &mut Arena, target: Id, state: Id) -> Result<()> {
    match arena.get(target) {
        Object::Dtype(dtype) => {
            let order = arena.items(state).and_then(|state| state.get(1)).and_then(|&order| arena.text(order));
            let dtype = dtype.with_order(order.map_or("", |order| order));
            *arena.get_mut(target) = Object::Dtype(dtype);
        }
        Object::EmptyArray => {
            let array = numpy::array(arena, state)?;
            *arena.get_mut(target) = array.unwrap_or_else(|| Object::Opaque("numpy.ndarray".into()));
        }
        _ => {}
    }
    Ok(())
}

/// Reads ("storage", class, key, location, count[, view]); `None` for elements of an unsupported type.
pub(super) fn storage_id(arena: &Arena, id: Id) -> Result<Option<StorageId>> {
    let parts = match arena.items(id) {
        Some(parts) if parts.len() >= 5 && arena.text(parts[0]).is_some_and(|kind| &**kind == "storage") => parts,
        _ => return Err(Error::data("a reference to data outside the pickle was not written by PyTorch")),
    };
    let class = match arena.get(parts[1]) {
        Object::Global(class) => class,
        _ => return Err(Error::data("a storage has no class")),
    };
    let key = match arena.get(parts[2]) {
        Object::Str(key) => Arc::clone(key),
        Object::Int(key) => key.to_string().into(),
        _ => return Err(Error::data("a storage has no key")),
    };
    let count = natural(arena, parts[4]).ok_or_else(|| Error::data(format!("storage {key:?} has no size")))?;
    let view = match parts.get(5).and_then(|&view| arena.items(view)) {
        Some(&[_, offset, count]) => natural(arena, offset).zip(natural(arena, count)),
        _ => None,
    };
    Ok(storage_kind(class).map(|kind| StorageId { key, kind, count, view }))
}

fn natural(arena: &Arena, id: Id) -> Option<u64> {
    arena.int(id).and_then(|value| u64::try_from(value).ok())
}

/// PyTorch's storage class and dtype for each element type.
pub(crate) const KINDS: [(Kind, &str, &str); 10] = [
    (Kind::Float, "FloatStorage", "float32"),
    (Kind::Double, "DoubleStorage", "float64"),
    (Kind::Half, "HalfStorage", "float16"),
    (Kind::BFloat16, "BFloat16Storage", "bfloat16"),
    (Kind::Int64, "LongStorage", "int64"),
    (Kind::Int, "IntStorage", "int32"),
    (Kind::Int16, "ShortStorage", "int16"),
    (Kind::Int8, "CharStorage", "int8"),
    (Kind::Uint8, "ByteStorage", "uint8"),
    (Kind::Bool, "BoolStorage", "bool"),
];

/// The element type of a storage class such as `torch.FloatStorage`.
fn storage_kind(class: &str) -> Option<Kind> {
    match class.strip_prefix("torch.")?.trim_start_matches("cuda.") {
        "UntypedStorage" | "storage.UntypedStorage" => Some(Kind::Uint8),
        "ComplexFloatStorage" => Some(Kind::ComplexFloat),
        "ComplexDoubleStorage" => Some(Kind::ComplexDouble),
        class => KINDS.iter().find(|(_, name, _)| *name == class).map(|(kind, ..)| *kind),
    }
}

/// The element type of a name such as `torch.float32`.
fn dtype_kind(name: &str) -> Option<Kind> {
    let name = name.strip_prefix("torch.")?;
    KINDS.iter().find(|(.., dtype)| *dtype == name).map(|(kind, ..)| *kind)
}

/// `_rebuild_tensor*(storage, offset, size, stride, ...)`; version 3 has the element type at index 6.
fn tensor(arena: &Arena, function: &str, arguments: &[Id]) -> Result<Option<Object>> {
    let &[storage, offset, size, stride, ..] = arguments else {
        return Err(Error::data("a tensor has no storage, offset, shape or strides"));
    };
    let Object::Storage(kind, storage) = arena.get(storage) else { return Ok(None) };
    let kind = match arguments.get(6).filter(|_| function.ends_with("v3")).map(|&dtype| arena.get(dtype)) {
        Some(Object::Global(name)) => dtype_kind(name),
        Some(_) => None,
        None => Some(*kind),
    };
    let Some(kind) = kind else { return Ok(None) };
    let shape = natural(arena, offset).zip(arena.ints(size).zip(arena.ints(stride)));
    let (offset, (size, stride)) =
        shape.ok_or_else(|| Error::data("the shape of a tensor is not a tuple of integers"))?;
    LazyTensor::new((**storage).clone(), kind, offset, size, stride).map(|tensor| Some(Object::Tensor(tensor.into())))
}

/// A dictionary of the pairs in `source`, which only Python 2 and `Counter` pass.
fn dictionary(arena: &mut Arena, class: &str, source: Option<Id>) -> Result<Option<Object>> {
    let Some(source) = source.filter(|_| class != "defaultdict") else { return Ok(Some(Object::Dict(Vec::new()))) };
    let entries: Option<Vec<(Id, Id)>> = match arena.get(source) {
        Object::Dict(entries) => Some(entries.clone()),
        Object::List(items) | Object::Tuple(items) => {
            let pair = |&item: &Id| arena.items(item).and_then(|pair| <[Id; 2]>::try_from(pair).ok());
            items.iter().map(|item| pair(item).map(|[key, value]| (key, value))).collect()
        }
        _ => None,
    };
    arena.spend(entries.as_ref().map_or(0, Vec::len))?;
    Ok(entries.map(Object::Dict))
}

/// `_codecs.encode(text, "latin1")`: bytes in protocol 2.
fn encoded(arena: &mut Arena, text: Id) -> Result<Option<Object>> {
    let bytes: Option<Vec<u8>> =
        arena.text(text).and_then(|text| text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect());
    arena.spend(bytes.as_ref().map_or(0, |bytes| bytes.len() / BYTES_OF_AN_OBJECT))?;
    Ok(bytes.map(|bytes| Object::Bytes(bytes.into())))
}

fn copied(arena: &mut Arena, items: Id) -> Result<Option<Vec<Id>>> {
    let items = arena.items(items).map(<[Id]>::to_vec);
    arena.spend(items.as_ref().map_or(0, Vec::len))?;
    Ok(items)
}

/// The name of a class, or of the class of an instance.
fn name_of(arena: &Arena, id: Id) -> Result<Arc<str>> {
    match arena.get(id) {
        Object::Global(name) | Object::Opaque(name) => Ok(Arc::clone(name)),
        _ => Err(Error::data("an object is called that is neither a class nor a function")),
    }
}

fn opaque(arena: &mut Arena, name: Arc<str>) -> Result<Id> {
    arena.add(Object::Opaque(name))
}
