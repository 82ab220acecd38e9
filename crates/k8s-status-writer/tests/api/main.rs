//! The writer against an API server: every case runs on the real
//! kube-apiserver, as the account and under the policies that are shipped, and
//! on the one in process. Cases that need failures to order run on the latter
//! only.
#![expect(clippy::unwrap_used, reason = "cases are functions that tests call")]

mod bed;
mod burst;
mod daemon;
mod faults;
mod identity;
mod lifetime;
mod resizes;

/// Makes a test per case and server.
macro_rules! cases {
    (
        both: $($module:ident::$case:ident),* $(,)?;
        real: $($real_module:ident::$real_case:ident),* $(,)?;
    ) => {
        mod in_process {
            $(#[tokio::test]
            async fn $case() {
                let api = zeropod_testkit::kube::InProcessApi::start().unwrap();
                super::$module::$case(&api).await;
            })*
        }
        mod real {
            $(real!($module::$case);)*
            $(real!($real_module::$real_case);)*
        }
    };
}

macro_rules! real {
    ($module:ident::$case:ident) => {
        #[tokio::test]
        async fn $case() {
            let api = zeropod_testkit::kube::RealApi::shared();
            match super::daemon::possible().and(api) {
                Ok(api) => super::$module::$case(api).await,
                Err(reason) => zeropod_testkit::skip::skip(&reason),
            }
        }
    };
}

cases!(
    both:
    lifetime::a_scaling_and_back,
    lifetime::events_as_contracted,
    lifetime::labels_only_touches_nothing_else,
    lifetime::s1_nothing_taken_before_the_pods_are_known_is_lost,
    lifetime::s2_a_restart_is_a_non_event,
    lifetime::s12_a_terminating_pod_is_left_alone,
    lifetime::a_label_goes_with_its_container,
    lifetime::killed_at_any_step_the_next_writer_finishes,
    identity::s11_the_next_pod_of_the_same_name_starts_afresh,
    identity::s11_the_uid_guards_every_write,
    identity::running_waits_for_the_kubelet,
    identity::s5_two_containers_and_a_kubelet_write_at_once,
    resizes::f_k1_guaranteed_pods_are_not_resized,
    resizes::f_k2_best_effort_pods_gain_no_requests,
    resizes::f_k3_restart_policy_is_respected,
    resizes::f_k5_limits_and_other_requests_stay,
    resizes::f_k7_pending_resizes_are_shown,
    resizes::f_k7_an_infeasible_restore_is_asked_for_again,
    resizes::f_k8_a_limit_range_is_met_once,
    resizes::f_k9_opting_out_restores,
    resizes::f_k10_lost_and_broken_annotations,
    resizes::f_k11_a_restarted_container_gets_its_requests_first,
    resizes::f_k12_a_preset_covers_migrated_containers_only,
    resizes::k3_a_change_while_running_is_kept,
    resizes::k5_sidecars_are_scaled,
    resizes::unreported_resources_are_waited_for,
    burst::s10_100_pods_100_transitions;
    real:
    lifetime::s7_a_terminating_namespace_refuses_events_only,
    resizes::f_k8_a_quota_that_forbids_waking_up_is_tried_again;
);
