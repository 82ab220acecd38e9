//! The authority's Secret, against an API server (I1, I18).

use std::{fs, os::unix::fs::PermissionsExt as _};

use zeropod_installer::ca::{get_or_create, write};
use zeropod_testkit::kube::{Cluster as _, Fault, InProcessApi, On, create_namespace};

fn api() -> InProcessApi {
    InProcessApi::start().unwrap()
}

/// A client whose own namespace is the installer's.
async fn client(api: &InProcessApi) -> kube::Client {
    create_namespace(&api.client(), "zeropod-system").await.unwrap();
    let mut config = api.config();
    config.default_namespace = "zeropod-system".into();
    kube::Client::try_from(config).unwrap()
}

#[tokio::test]
async fn the_first_node_makes_it_and_all_others_get_the_same() {
    let api = api();
    let client = client(&api).await;
    let first = get_or_create(&client).await.unwrap();
    assert_eq!(get_or_create(&client).await.unwrap(), first);

    let dir = tempfile::tempdir().unwrap();
    write(&first, dir.path()).unwrap();
    for (name, content) in [("ca.crt", &first.certificate), ("ca.key", &first.key)] {
        let path = dir.path().join(name);
        assert_eq!(&fs::read_to_string(&path).unwrap(), content);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_lost_race_yields_the_winner_s() {
    let api = api();
    let client = client(&api).await;
    // Both see no Secret, and one of them makes it first.
    api.inject(On::method("POST").path("/secrets"), 1, Fault::ApplyThenClose);
    get_or_create(&client).await.unwrap_err();
    let winner = get_or_create(&client).await.unwrap();
    api.inject(On::method("GET").path("/secrets/ca-cert"), 1, Fault::Status(404));
    assert_eq!(get_or_create(&client).await.unwrap(), winner);
}

#[tokio::test]
async fn any_other_error_is_an_error() {
    // I1: the Go installer took everything but "not found" for success.
    let api = api();
    let client = client(&api).await;
    for (on, status) in [
        (On::method("GET").path("/secrets/ca-cert"), 403),
        (On::method("GET").path("/secrets/ca-cert"), 500),
        (On::method("POST").path("/secrets"), 403),
    ] {
        api.inject(on, usize::MAX, Fault::Status(status));
        let error = get_or_create(&client).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot get the node API's certificate authority"), "{error}");
        api.clear_faults();
    }
}
