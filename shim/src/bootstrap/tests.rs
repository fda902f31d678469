//! Which input is a bootstrap message, and what each containerd gets in return.

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::*;

fn arguments() -> Arguments {
    let line = "-namespace k8s.io -address /run/c.sock -id a start";
    Arguments::parse(line.split(' ').map(str::to_owned)).unwrap()
}

fn params() -> BootstrapParams {
    BootstrapParams {
        instance_id: "a".into(),
        namespace: "k8s.io".into(),
        ..Default::default()
    }
}

fn parse(message: &impl containerd_shim_protos::protobuf::Message) -> Bootstrap {
    Bootstrap::parse(&message.write_to_bytes().unwrap(), &arguments())
}

#[test]
fn parameters_have_the_flags_id_and_namespace() {
    assert_eq!(parse(&params()), Bootstrap::Params(Box::new(params())));
    for (id, namespace) in [("b", "k8s.io"), ("a", "moby"), ("", "")] {
        let other = BootstrapParams {
            instance_id: id.into(),
            namespace: namespace.into(),
            ..Default::default()
        };
        assert_eq!(parse(&other), Bootstrap::Flags, "{id} {namespace}");
    }
}

#[test]
fn options_and_other_input_are_not_parameters() {
    let options = Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: b"\x0a\x01a".to_vec(),
        ..Default::default()
    };
    assert_eq!(parse(&options), Bootstrap::Flags);
    for bytes in [
        &b""[..],
        b"{}",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x7f",
    ] {
        assert_eq!(
            Bootstrap::parse(bytes, &arguments()),
            Bootstrap::Flags,
            "{bytes:?}"
        );
    }
}

#[test]
fn an_empty_socket_directory_is_none() {
    assert_eq!(Bootstrap::Flags.socket_directory(), None);
    for (named, want) in [(None, None), (Some(""), None), (Some("/run/s"), Some("/run/s"))] {
        let mut message = params();
        message.socket_dir = named.map(str::to_owned);
        assert_eq!(parse(&message).socket_directory(), want.map(PathBuf::from));
    }
}

#[test]
fn each_containerd_gets_the_form_that_it_reads() {
    assert_eq!(Bootstrap::Flags.response("unix:///s"), b"unix:///s");
    let result = parse(&params()).response("unix:///s");
    let result = BootstrapResult::parse_from_bytes(&result).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(result.address, "unix:///s");
    let [capabilities] = &result.extensions[..] else {
        panic!("{result:?}")
    };
    assert_eq!(capabilities.value.type_url, "containerd.types.MountCapabilities");
    let capabilities = MountCapabilities::parse_from_bytes(&capabilities.value.value).unwrap();
    assert_eq!(capabilities.types, ["bind", "overlay", "erofs"]);
    assert_eq!(capabilities.transforms, ["format", "mkdir"]);
}

#[test]
fn extensions_are_listed_by_type() {
    let mut message = params();
    message.extensions.push(Extension {
        value: Some(Any {
            type_url: "x.Options".into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    });
    assert_eq!(parse(&message).extensions().collect::<Vec<_>>(), ["x.Options"]);
    assert_eq!(Bootstrap::Flags.extensions().count(), 0);
}
