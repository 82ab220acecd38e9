//! The objects, with their versions and a bounded history for watches.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    refusal::{Refusal, Wrong},
    resources::{Key, Resource},
};

/// Changes that a watch can still start from.
const HISTORY: usize = 10_000;

/// What an update never changes in `metadata`.
const KEPT: [&str; 8] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
];

/// All objects there are.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: BTreeMap<(&'static Resource, Key), Arc<Value>>,
    version: u64,
    names: u64,
    history: VecDeque<Change>,
    /// Version of the last change that the history has no more.
    forgotten: u64,
}

/// What happened to one object; a new one has no old state, a deleted one no new.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: &'static Resource,
    pub(super) old: Option<Arc<Value>>,
    pub(super) new: Option<Arc<Value>>,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(
        &self,
        resource: &'static Resource,
        key: &Key,
    ) -> Result<Arc<Value>, Refusal> {
        let object = self.objects.get(&(resource, key.clone()));
        object.map(Arc::clone).ok_or_else(|| Refusal::not_found(resource.plural, &key.name))
    }

    /// Objects of a kind, by namespace and name.
    pub(super) fn list<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let first = Key { namespace: namespace.unwrap_or_default().into(), name: String::new() };
        self.objects
            .range((resource, first)..)
            .take_while(move |((of, key), _)| {
                *of == resource && namespace.is_none_or(|wanted| wanted == key.namespace)
            })
            .map(|((_, key), object)| (key, object))
    }

    /// Adds an object; `complete` fills in and checks what is particular to its kind.
    pub(super) fn create(
        &mut self,
        resource: &'static Resource,
        namespace: String,
        mut object: Value,
        complete: impl FnOnce(&mut Value, &str) -> Result<(), Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let name = self.name(resource, &object)?;
        let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
        if resource.namespaced && !given.is_empty() && given != namespace {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let key = Key { namespace, name };
        if self.get(resource, &key).is_ok() {
            return Err(Refusal::already_exists(resource.plural, &key.name));
        }
        self.names += 1;
        let number = self.names;
        let metadata = &mut object["metadata"];
        metadata["name"] = key.name.clone().into();
        if resource.namespaced {
            metadata["namespace"] = key.namespace.clone().into();
        }
        metadata["uid"] = format!("00000000-0000-4000-8000-{number:012x}").into();
        metadata["creationTimestamp"] = now();
        object["kind"] = resource.kind.into();
        object["apiVersion"] = "v1".into();
        complete(&mut object, &key.name)?;
        drop_nulls(&mut object);
        Ok(self.record(resource, key, Some(object)))
    }

    /// Replaces an object by what `change` makes of it; no change, no new version.
    pub(super) fn update(
        &mut self,
        resource: &'static Resource,
        key: &Key,
        change: impl FnOnce(&Value) -> Result<Value, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(resource, key)?;
        let mut new = change(&old)?;
        let plural = resource.plural;
        let stated = |object: &Value, field: &str| object["metadata"][field].clone();
        if !stated(&new, "resourceVersion").is_null()
            && stated(&new, "resourceVersion") != stated(&old, "resourceVersion")
        {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Refusal::conflict(plural, &key.name, why));
        }
        if stated(&new, "uid") != stated(&old, "uid") {
            let given = stated(&new, "uid");
            let why = Wrong::invalid(
                "metadata.uid",
                given.as_str().unwrap_or_default(),
                "field is immutable",
            );
            return Err(Refusal::invalid(resource.kind, &key.name, &[why]));
        }
        for kept in KEPT {
            new["metadata"][kept] = stated(&old, kept);
        }
        new["kind"] = resource.kind.into();
        new["apiVersion"] = "v1".into();
        drop_nulls(&mut new);
        if new == *old {
            return Ok(old);
        }
        if new["spec"] != old["spec"] && old["metadata"]["generation"].is_u64() {
            new["metadata"]["generation"] =
                (old["metadata"]["generation"].as_u64().unwrap_or_default() + 1).into();
        }
        Ok(self.record(resource, key.clone(), Some(new)))
    }

    /// Notes that an object is to go within `grace` seconds, and leaves it.
    pub(super) fn mark_deleted(
        &mut self,
        resource: &'static Resource,
        key: &Key,
        grace: u64,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(resource, key)?;
        let metadata = &old["metadata"];
        if metadata["deletionGracePeriodSeconds"].as_u64().is_some_and(|earlier| earlier <= grace) {
            return Ok(old);
        }
        let since = metadata["deletionTimestamp"].as_str().map_or_else(now, Value::from);
        let mut object = Value::clone(&old);
        object["metadata"]["deletionTimestamp"] = since;
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        Ok(self.record(resource, key.clone(), Some(object)))
    }

    /// Removes an object; returns its last state.
    pub(super) fn delete(
        &mut self,
        resource: &'static Resource,
        key: &Key,
    ) -> Result<Arc<Value>, Refusal> {
        self.get(resource, key)?;
        Ok(self.record(resource, key.clone(), None))
    }

    /// Changes since a version, or a refusal if the history begins later.
    pub(super) fn since(&self, version: u64) -> Result<impl Iterator<Item = &Change>, Refusal> {
        if version < self.forgotten {
            return Err(Refusal::expired());
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(start..))
    }

    /// Makes every version so far too old for a watch to start from.
    pub(super) fn forget_history(&mut self) {
        // A version of its own, so that a watch that is up to date expires, too.
        self.version += 1;
        self.forgotten = self.version;
        self.history.clear();
    }

    fn record(&mut self, resource: &'static Resource, key: Key, new: Option<Value>) -> Arc<Value> {
        self.version += 1;
        let place = (resource, key);
        let old = self.objects.remove(&place);
        let new = new.map(|mut object| {
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            Arc::new(object)
        });
        let shown = new.clone().or_else(|| old.clone()).unwrap_or_default();
        if let Some(object) = &new {
            self.objects.insert(place, Arc::clone(object));
        }
        if self.history.len() == HISTORY {
            self.forgotten = self.history.pop_front().map_or(0, |change| change.version);
        }
        self.history.push_back(Change { version: self.version, resource, old, new });
        shown
    }

    fn name(&mut self, resource: &Resource, object: &Value) -> Result<String, Refusal> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        match (text("name"), text("generateName")) {
            ("", "") => {
                let why = Wrong::required("metadata.name");
                Err(Refusal::invalid(resource.kind, "", &[why]))
            }
            ("", prefix) => {
                self.names += 1;
                Ok(format!("{prefix}{}", suffix(self.names)))
            }
            (name, _) => Ok(name.to_owned()),
        }
    }
}

fn now() -> Value {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// Five characters, other for each number.
fn suffix(number: u64) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // No multiple of 3: no number repeats before all were used, and neighbours look apart.
    let mut rest = number.wrapping_mul(6_364_136) % 27u64.pow(5);
    let mut text = String::new();
    for _ in 0..5 {
        text.push(char::from(ALPHABET[usize::try_from(rest % 27).unwrap_or_default()]));
        rest /= 27;
    }
    text
}

/// Unset fields are absent, also where reading them by index left a null.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
