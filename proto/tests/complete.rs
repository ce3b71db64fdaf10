//! The compiled API is compared with the list of facts, name by name and number by number, in both directions.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]
use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, EnumDescriptor, Kind, MessageDescriptor, ServiceDescriptor};

const FACTS: &str = include_str!("../wire-facts.txt");

fn facts() -> BTreeSet<String> {
    let mut head = String::new();
    let mut found = BTreeSet::new();
    for line in FACTS
        .lines()
        .filter(|l| !l.starts_with('#') && !l.starts_with("package ") && !l.trim().is_empty())
    {
        match line.strip_prefix("  ") {
            None => {
                head = line.split(" [").next().unwrap().to_owned();
                found.insert(line.to_owned());
            }
            Some(body) => drop(found.insert(format!("{head}: {body}"))),
        }
    }
    found
}

fn options(of: &prost_reflect::DynamicMessage, extra: Option<String>) -> String {
    let mut names: Vec<String> = extra.into_iter().collect();
    let mut set: Vec<_> = of
        .extensions()
        .map(|(extension, _)| (extension.number(), extension.name().to_owned()))
        .collect();
    set.sort();
    names.extend(set.into_iter().map(|(_, name)| name));
    if names.is_empty() {
        String::new()
    } else {
        format!(" [{}]", names.join(", "))
    }
}

fn service(service: &ServiceDescriptor, out: &mut BTreeSet<String>) {
    let head = format!("service {}", service.full_name());
    out.insert(format!("{head}{}", options(&service.options(), None)));
    for method in service.methods() {
        let stream = if method.is_server_streaming() {
            "stream "
        } else {
            ""
        };
        let (input, output) = (method.input(), method.output());
        let line = format!(
            "{}({}) returns ({stream}{})",
            method.name(),
            input.full_name(),
            output.full_name()
        );
        out.insert(format!("{head}: {line}{}", options(&method.options(), None)));
    }
}

fn enumeration(of: &EnumDescriptor, out: &mut BTreeSet<String>) {
    let head = format!("enum {}", of.full_name());
    out.insert(format!("{head}{}", options(&of.options(), None)));
    for value in of.values() {
        out.insert(format!(
            "{head}: {} {}{}",
            value.number(),
            value.name(),
            options(&value.options(), None)
        ));
    }
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(of) => of.full_name().to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn message(of: &MessageDescriptor, out: &mut BTreeSet<String>) {
    if of.is_map_entry() {
        return;
    }
    let head = format!("message {}", of.full_name());
    out.insert(format!("{head}{}", options(&of.options(), None)));
    for field in of.fields() {
        let shown = if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                unreachable!("a map's entry is a message")
            };
            format!(
                "map<{}, {}>",
                kind(&entry.map_entry_key_field().kind()),
                kind(&entry.map_entry_value_field().kind())
            )
        } else if field.is_list() {
            format!("repeated {}", kind(&field.kind()))
        } else {
            kind(&field.kind())
        };
        let oneof = field
            .containing_oneof()
            .map(|oneof| format!("oneof {}", oneof.name()));
        out.insert(format!(
            "{head}: {} {}: {shown}{}",
            field.number(),
            field.name(),
            options(&field.options(), oneof)
        ));
    }
    for range in of.reserved_ranges() {
        out.insert(format!("{head}: reserved {}", range.start));
    }
    of.child_messages().for_each(|child| message(&child, out));
    of.child_enums().for_each(|child| enumeration(&child, out));
}

fn compiled() -> BTreeSet<String> {
    let pool = DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap();
    let mut out = BTreeSet::new();
    for file in pool
        .files()
        .filter(|f| ["csi.v1", "pluginregistration"].contains(&f.package_name()))
    {
        file.services().for_each(|s| service(&s, &mut out));
        file.enums().for_each(|e| enumeration(&e, &mut out));
        file.messages().for_each(|m| message(&m, &mut out));
    }
    out
}

#[test]
fn nothing_is_missing_and_nothing_is_added() {
    let (facts, compiled) = (facts(), compiled());
    assert!(facts.len() > 400, "the list itself is not whole: {}", facts.len());
    let missing: Vec<_> = facts.difference(&compiled).collect();
    let added: Vec<_> = compiled.difference(&facts).collect();
    assert!(
        missing.is_empty() && added.is_empty(),
        "missing {missing:#?}\nadded {added:#?}"
    );
}
