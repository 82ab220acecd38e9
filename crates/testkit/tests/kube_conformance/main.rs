//! The in-process API server answers like the real one: every case runs
//! against both. What is asserted here is what zeropod's programs rely on:
//! codes and reasons, results of patches, and events of watches.
#![expect(clippy::unwrap_used, reason = "cases are functions that tests call")]

mod errors;
mod events;
mod patches;
mod resize;
mod watches;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use zeropod_testkit::kube::{Cluster, create_namespace};

/// A cluster with a namespace and a node name for one case.
struct Bed {
    client: Client,
    namespace: String,
    node: String,
}

impl Bed {
    async fn new(cluster: &dyn Cluster, case: &str) -> Self {
        let client = cluster.client();
        let namespace = case.replace('_', "-");
        create_namespace(&client, &namespace).await.unwrap();
        Self { client, node: format!("node-{namespace}"), namespace }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// The code and reason of a refusal.
#[track_caller]
fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String, String) {
    match result {
        Err(kube::Error::Api(status)) => {
            (status.code, status.reason.clone(), status.message.clone())
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Makes a test per case and server.
macro_rules! on_both {
    ($($module:ident::$case:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $case() {
                let api = zeropod_testkit::kube::InProcessApi::start().unwrap();
                super::$module::$case(super::Bed::new(&api, stringify!($case)).await).await;
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $case() {
                match zeropod_testkit::kube::RealApi::shared() {
                    Ok(api) => super::$module::$case(super::Bed::new(api, stringify!($case)).await).await,
                    Err(error) => zeropod_testkit::skip::skip(&error),
                }
            })*
        }
    };
}

on_both! {
    errors::absent_objects_are_not_found,
    errors::a_name_is_taken_once,
    errors::a_pod_needs_its_namespace,
    errors::malformed_pods_are_refused,
    errors::deleting_waits_for_the_kubelet_of_a_bound_pod,
    errors::another_uid_is_not_the_object,
    events::events_get_generated_names,
    events::events_with_a_time_need_their_reporter,
    patches::the_server_completes_a_pod,
    patches::a_merge_patch_changes_just_its_keys,
    patches::a_patch_that_changes_nothing_makes_no_version,
    patches::a_stale_version_conflicts,
    patches::labels_are_checked,
    patches::the_spec_of_a_pod_stays,
    patches::a_status_patch_changes_status_and_metadata,
    patches::an_unknown_media_type_is_refused,
    resize::requests_go_down_and_up_again,
    resize::the_kubelet_has_to_report_resources_first,
    resize::the_class_of_service_stays,
    resize::what_may_not_be_resized,
    resize::limit_ranges_apply,
    resize::discovery_lists_it,
    watches::a_node_sees_its_own_pods,
    watches::a_watch_goes_on_from_a_version,
    watches::lists_come_in_pages,
    watches::a_list_can_be_streamed,
}
