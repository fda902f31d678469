//! Messages of the interface as JSON: from `runtime.proto`, by reflection. `node` calls it. Field names are
//! those of the interface; a name or a value that it does not have is an error that says where.

use anyhow::{Context as _, Result, bail};
use protobuf::reflect::{
    FieldDescriptor, FileDescriptor, MessageDescriptor, ReflectFieldRef, ReflectValueBox, ReflectValueRef,
    RuntimeFieldType, RuntimeType,
};
use protobuf::{CodedInputStream, MessageDyn};
use serde_json::{Map, Value};

const SCHEMA: &str = include_str!("runtime.proto");

/// The messages and calls of `runtime.proto`.
pub struct Schema(FileDescriptor);

/// A call: its path, and the types of its request and its answer.
pub struct Method {
    /// `/package.Service/Name`.
    pub path: String,
    input: MessageDescriptor,
    output: MessageDescriptor,
}

impl Schema {
    /// Parses `runtime.proto`.
    ///
    /// # Errors
    /// If the file is wrong.
    pub fn load() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("runtime.proto");
        std::fs::write(&file, SCHEMA)?;
        let parsed = protobuf_parse::Parser::new()
            .pure()
            .include(directory.path())
            .input(&file)
            .file_descriptor_set()
            .context("parsing runtime.proto")?;
        let file = parsed.file.into_iter().next().context("runtime.proto is empty")?;
        Ok(Self(FileDescriptor::new_dynamic(file, &[])?))
    }

    /// The call `name` of any of the services.
    ///
    /// # Errors
    /// If no service has it.
    pub fn method(&self, name: &str) -> Result<Method> {
        for service in self.0.services() {
            let service_name = service.proto().name();
            if let Some(found) = service.methods().find(|method| method.proto().name() == name) {
                return Ok(Method {
                    path: format!("/{}.{service_name}/{name}", self.0.package()),
                    input: found.input_type(),
                    output: found.output_type(),
                });
            }
        }
        bail!("runtime.proto has no call {name}")
    }
}

impl Method {
    /// The bytes of a request.
    ///
    /// # Errors
    /// If `request` has a field that the message has not, or a value of another type.
    pub fn encode(&self, request: &Value) -> Result<Vec<u8>> {
        let message = message(&self.input, request)?;
        Ok(message.write_to_bytes_dyn()?)
    }

    /// The answer that `bytes` are. Messages that are absent are left out, other fields have their defaults.
    ///
    /// # Errors
    /// If the bytes are no such message.
    pub fn decode(&self, bytes: &[u8]) -> Result<Value> {
        let mut message = self.output.new_instance();
        message.merge_from_dyn(&mut CodedInputStream::from_bytes(bytes))?;
        Ok(json(&*message))
    }
}

fn message(descriptor: &MessageDescriptor, from: &Value) -> Result<Box<dyn MessageDyn>> {
    let mut to = descriptor.new_instance();
    let name = descriptor.name();
    let fields = from
        .as_object()
        .with_context(|| format!("{name} must be an object, not {from}"))?;
    for (key, value) in fields {
        let field = descriptor
            .field_by_name(key)
            .with_context(|| format!("{name} has no field {key}"))?;
        set(&mut *to, &field, value).with_context(|| format!("{name}.{key}"))?;
    }
    Ok(to)
}

fn set(to: &mut dyn MessageDyn, field: &FieldDescriptor, value: &Value) -> Result<()> {
    match field.runtime_field_type() {
        RuntimeFieldType::Singular(kind) => field.set_singular_field(to, single(&kind, value)?),
        RuntimeFieldType::Repeated(kind) => {
            let values = value.as_array().with_context(|| format!("a list, not {value}"))?;
            for value in values {
                field.mut_repeated(to).push(single(&kind, value)?);
            }
        }
        RuntimeFieldType::Map(_, kind) => {
            let values = value
                .as_object()
                .with_context(|| format!("an object, not {value}"))?;
            for (key, value) in values {
                let key = ReflectValueBox::String(key.clone());
                field.mut_map(to).insert(key, single(&kind, value)?);
            }
        }
    }
    Ok(())
}

fn single(kind: &RuntimeType, value: &Value) -> Result<ReflectValueBox> {
    let text = || value.as_str().with_context(|| format!("a string, not {value}"));
    let number = || value.as_i64().with_context(|| format!("a number, not {value}"));
    Ok(match kind {
        RuntimeType::I32 => ReflectValueBox::I32(i32::try_from(number()?)?),
        RuntimeType::I64 => ReflectValueBox::I64(number()?),
        RuntimeType::U32 => ReflectValueBox::U32(u32::try_from(number()?)?),
        RuntimeType::U64 => ReflectValueBox::U64(u64::try_from(number()?)?),
        RuntimeType::Bool => ReflectValueBox::Bool(value.as_bool().context("true or false")?),
        RuntimeType::String => ReflectValueBox::String(text()?.to_owned()),
        RuntimeType::VecU8 => ReflectValueBox::Bytes(text()?.as_bytes().to_vec()),
        RuntimeType::Enum(names) => {
            let found = names.value_by_name(text()?);
            let found = found.with_context(|| format!("{} has no {value}", names.name()))?;
            ReflectValueBox::Enum(names.clone(), found.value())
        }
        RuntimeType::Message(descriptor) => ReflectValueBox::Message(message(descriptor, value)?),
        RuntimeType::F32 | RuntimeType::F64 => bail!("the interface has no floating-point numbers"),
    })
}

fn json(message: &dyn MessageDyn) -> Value {
    let mut fields = Map::new();
    for field in message.descriptor_dyn().fields() {
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => match value.value() {
                Some(value) => json_of(&value),
                None if matches!(field.singular_runtime_type(), RuntimeType::Message(_)) => continue,
                None => json_of(&field.get_singular_field_or_default(message)),
            },
            ReflectFieldRef::Repeated(values) => values.into_iter().map(|value| json_of(&value)).collect(),
            ReflectFieldRef::Map(values) => {
                let entries = values
                    .into_iter()
                    .map(|(key, value)| (key.to_string(), json_of(&value)));
                Value::Object(entries.collect())
            }
        };
        fields.insert(field.name().to_owned(), value);
    }
    Value::Object(fields)
}

fn json_of(value: &ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(number) => (*number).into(),
        ReflectValueRef::U64(number) => (*number).into(),
        ReflectValueRef::I32(number) => (*number).into(),
        ReflectValueRef::I64(number) => (*number).into(),
        ReflectValueRef::F32(number) => (*number).into(),
        ReflectValueRef::F64(number) => (*number).into(),
        ReflectValueRef::Bool(value) => (*value).into(),
        ReflectValueRef::String(text) => (*text).into(),
        ReflectValueRef::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned().into(),
        ReflectValueRef::Enum(names, number) => match names.value_by_number(*number) {
            Some(found) => found.name().into(),
            None => (*number).into(),
        },
        ReflectValueRef::Message(message) => json(&**message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_survives_the_way_to_bytes_and_back() {
        let schema = Schema::load().unwrap();
        let mut method = schema.method("CreateContainer").unwrap();
        assert_eq!(method.path, "/runtime.v1.RuntimeService/CreateContainer");
        let config = json!({
            "pod_sandbox_id": "p",
            "config": {
                "metadata": {"name": "c", "attempt": 2},
                "command": ["a", "b"],
                "labels": {"k": "v"},
                "stop_signal": "SIGNAL_SIGUSR1",
                "linux": {"security_context": {"run_as_user": {"value": -1}, "no_new_privs": true}},
            },
        });
        let bytes = method.encode(&config).unwrap();
        method.output = method.input.clone();
        let back = method.decode(&bytes).unwrap();
        for path in [
            "/pod_sandbox_id",
            "/config/metadata/attempt",
            "/config/command",
            "/config/labels",
            "/config/stop_signal",
            "/config/linux/security_context/run_as_user/value",
        ] {
            assert_eq!(back.pointer(path), config.pointer(path), "{path}");
        }
        assert_eq!(back.pointer("/config/linux/resources"), None);
        assert_eq!(back.pointer("/config/tty"), Some(&json!(false)));
    }

    #[test]
    fn errors_name_the_field() {
        let schema = Schema::load().unwrap();
        let method = schema.method("CreateContainer").unwrap();
        for (request, text) in [
            (
                json!({"config": {"comand": []}}),
                "ContainerConfig has no field comand",
            ),
            (json!({"config": {"tty": 1}}), "ContainerConfig.tty"),
            (
                json!({"config": {"stop_signal": "SIGX"}}),
                "Signal has no \"SIGX\"",
            ),
        ] {
            let error = method.encode(&request).unwrap_err();
            assert!(format!("{error:#}").contains(text), "{error:#}");
        }
        assert!(schema.method("Nothing").is_err());
    }
}
