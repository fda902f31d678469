//! What CreateSandbox becomes, and what is refused.

use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nacre_pod::Lifetime;

use super::*;
use crate::proto::cri::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxMetadata, UserNamespace,
};

fn request(config: &PodSandboxConfig) -> CreateSandboxRequest {
    CreateSandboxRequest {
        sandbox_id: "s1".into(),
        netns_path: "/run/netns/a".into(),
        options: Some(Any {
            type_url: CONFIG.into(),
            value: config.write_to_bytes().unwrap(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn config() -> PodSandboxConfig {
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        memory_limit_in_bytes: 1 << 30,
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/burstable/pod1".into(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            namespace: "shop".into(),
            ..Default::default()
        })
        .into(),
        hostname: "web-0".into(),
        linux: Some(linux).into(),
        ..Default::default()
    }
}

#[test]
fn cri_s_configuration_becomes_the_pod() {
    let want = PodSpec {
        cgroups_path: Some("/kubepods/burstable/pod1/s1".into()),
        size: SizeHints {
            memory_limit: Some(1 << 30),
            cpu_quota: Some(150_000),
            cpu_period: Some(100_000),
        },
        hostname: Some("web-0".into()),
        network_namespace: Some("/run/netns/a".into()),
        sysctls: DEFAULT_SYSCTLS
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        lifetime: Lifetime::SandboxApi,
        name: Some("shop/web-0".into()),
        ..PodSpec::default()
    };
    assert_eq!(pod_spec(&request(&config()), "k8s.io").unwrap(), want);
}

#[test]
fn a_client_may_give_no_configuration() {
    let request = CreateSandboxRequest {
        sandbox_id: "s1".into(),
        ..Default::default()
    };
    let spec = pod_spec(&request, "default").unwrap();
    assert_eq!(spec.cgroups_path.as_deref(), Some("/default/s1"));
    assert_eq!(
        (spec.hostname, spec.network_namespace, spec.name),
        (None, None, None)
    );
    assert_eq!((spec.lifetime, spec.sysctls.len()), (Lifetime::SandboxApi, 0));
}

#[test]
fn dns_becomes_a_resolv_conf() {
    let mut config = config();
    config.dns_config = Some(DNSConfig {
        servers: vec!["10.96.0.10".into(), "fd88::10".into()],
        searches: vec!["a.svc.cluster.local".into(), "svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
        ..Default::default()
    })
    .into();
    let text = pod_spec(&request(&config), "k8s.io")
        .unwrap()
        .resolv_conf
        .unwrap();
    let want = "search a.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd88::10\n\
        options ndots:5\n";
    assert_eq!(text, want);
    assert_eq!(resolv_conf(&DNSConfig::new()), "");
}

#[test]
fn a_slice_is_written_in_systemd_s_notation() {
    let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";
    let want = "kubepods-burstable-pod1.slice:cri-containerd:s1";
    assert_eq!(cgroups_path(path, "k8s.io", "s1"), want);
    assert_eq!(cgroups_path("/a/", "k8s.io", "s1"), "/a/s1");
}

#[test]
fn a_user_namespace_is_the_pod_s() {
    let read = |mode: NamespaceMode, gids: &[IDMapping]| {
        let mapping = IDMapping {
            host_id: 70_000,
            length: 65_536,
            ..Default::default()
        };
        let users = UserNamespace {
            mode: mode.into(),
            uids: vec![mapping],
            gids: gids.to_vec(),
            ..Default::default()
        };
        let options = NamespaceOption {
            userns_options: Some(users).into(),
            ..Default::default()
        };
        super::users(&options)
    };
    let range = |host, size| IdRange {
        container: 0,
        host,
        size,
    };
    let gids = [IDMapping {
        host_id: 5,
        length: 7,
        ..Default::default()
    }];
    let want = IdMap {
        uids: vec![range(70_000, 65_536)],
        gids: vec![range(5, 7)],
    };
    assert_eq!(read(NamespaceMode::POD, &gids).unwrap(), Some(want));
    assert_eq!(read(NamespaceMode::NODE, &gids).unwrap(), None);
    assert_eq!(super::users(&NamespaceOption::new()).unwrap(), None);
    for (mode, gids, named) in [
        (
            NamespaceMode::POD,
            &[][..],
            "userns_options: a user namespace needs",
        ),
        (NamespaceMode::CONTAINER, &gids, "userns_options: expected mode"),
    ] {
        let error = read(mode, gids).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn namespaces_of_the_host_are_refused_by_name() {
    type Set = fn(&mut NamespaceOption);
    let sets: [(&str, Set); 3] = [
        ("network", |options| {
            options.network = EnumOrUnknown::new(NamespaceMode::NODE)
        }),
        ("pid", |options| {
            options.pid = EnumOrUnknown::new(NamespaceMode::NODE)
        }),
        ("ipc", |options| {
            options.ipc = EnumOrUnknown::new(NamespaceMode::NODE)
        }),
    ];
    for (name, set) in sets {
        let mut options = NamespaceOption::new();
        set(&mut options);
        let mut config = config();
        config.linux.mut_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options).into(),
            ..Default::default()
        })
        .into();
        let error = pod_spec(&request(&config), "k8s.io").unwrap_err().to_string();
        let want = format!("linux.security_context.namespace_options.{name}: NODE");
        assert!(error.starts_with(&want), "{error}");
    }
}

#[test]
fn sysctls_are_the_pod_s_and_containerd_s_defaults() {
    let mut config = config();
    let sysctls = &mut config.linux.mut_or_insert_default().sysctls;
    sysctls.insert("net.core.somaxconn".into(), "9".into());
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "81".into());
    let want = [
        ("net.core.somaxconn", "9"),
        ("net.ipv4.ip_unprivileged_port_start", "81"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut want = BTreeMap::from(want);
    assert_eq!(pod_spec(&request(&config), "k8s.io").unwrap().sysctls, want);
    let mapping = IDMapping {
        length: 5,
        ..Default::default()
    };
    let linux = config.linux.mut_or_insert_default();
    let options = linux.security_context.mut_or_insert_default();
    let options = options.namespace_options.mut_or_insert_default();
    let users = options.userns_options.mut_or_insert_default();
    (users.uids, users.gids) = (vec![mapping.clone()], vec![mapping]);
    want.remove(PING_GROUPS);
    assert_eq!(pod_spec(&request(&config), "k8s.io").unwrap().sysctls, want);
}

#[test]
fn other_options_are_refused() {
    let mut request = request(&config());
    request.options.mut_or_insert_default().type_url = "x.Config".into();
    let error = pod_spec(&request, "k8s.io").unwrap_err().to_string();
    assert!(
        error.contains("expected type runtime.v1.PodSandboxConfig"),
        "{error}"
    );
    request.options.mut_or_insert_default().type_url = format!("type.googleapis.com/{CONFIG}");
    request.options.mut_or_insert_default().value = vec![0xff];
    let error = pod_spec(&request, "k8s.io").unwrap_err().to_string();
    assert!(error.starts_with("options: "), "{error}");
}
