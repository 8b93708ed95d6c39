//! The OpenAPI document, made from the table of endpoints and the schemas of the JSON types.

use std::sync::OnceLock;

use bytes::Bytes;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::answer;
use super::api::ErrorBody;
use super::call::Call;
use super::endpoint::{Content, Endpoint};
use super::error::Audience;
use super::response_future::ResponseFuture;

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    let text = || format!("{:#}\n", document(call.service.endpoints())).into();
    Some(ResponseFuture::ready(answer::ready(answer::JSON, DOCUMENT.get_or_init(text).clone())))
}

/// OpenAPI 3.1, whose schemas are JSON Schema 2020-12.
fn document(endpoints: &[Endpoint]) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schemas =
        settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    let mut paths = Map::new();
    for endpoint in endpoints {
        let address = endpoint.pattern.as_str().replace('<', "{").replace('>', "}");
        let operations = paths.entry(address).or_insert_with(|| json!({}));
        operations[endpoint.verb.as_str().to_ascii_lowercase()] = operation(endpoint, &mut schemas);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ondine",
            "version": env!("CARGO_PKG_VERSION"),
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn operation(endpoint: &Endpoint, schemas: &mut SchemaGenerator) -> Value {
    let text = json!({ "type": "string" });
    let in_path = endpoint
        .pattern
        .names()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text }));
    let in_query = endpoint.query.iter().map(|(name, meaning)| {
        json!({ "name": name, "in": "query", "required": false, "description": meaning, "schema": text })
    });
    let (status, answer) = match &endpoint.answer {
        Content::Media(media_type) => ("200", json!({ *media_type: {} })),
        Content::Json(schema) => ("200", json!({ "application/json": { "schema": schema(schemas) } })),
        Content::Lines => ("200", json!({ "text/plain": { "schema": text } })),
        Content::Redirect => ("302", json!({ "text/plain": { "schema": text } })),
    };
    let error = if endpoint.audience == Audience::Api {
        json!({ "application/json": { "schema": schemas.subschema_for::<ErrorBody>() } })
    } else {
        json!({ "text/plain": { "schema": text } })
    };
    let mut operation = json!({
        "summary": endpoint.summary,
        "x-ondine-right": (!endpoint.open).then(|| endpoint.action.name()),
        "parameters": in_path.chain(in_query).collect::<Vec<Value>>(),
        "responses": {
            status: { "description": endpoint.summary, "content": answer },
            "default": { "description": "an error", "content": error },
        },
    });
    if let Some(body) = endpoint.body {
        let content = json!({ "application/json": { "schema": body(schemas) } });
        operation["requestBody"] = json!({ "required": false, "content": content });
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::endpoints::ENDPOINTS;

    /// The values of all members of this name, wherever they are.
    fn members<'v>(value: &'v Value, name: &str, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get(name).and_then(Value::as_str));
                object.values().for_each(|value| members(value, name, found));
            }
            Value::Array(values) => values.iter().for_each(|value| members(value, name, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_every_endpoint_and_all_that_it_refers_to() {
        let document = document(ENDPOINTS);
        let paths = document["paths"].as_object().expect("paths");
        let operations: usize = paths.values().map(|path| path.as_object().map_or(0, Map::len)).sum();
        assert_eq!(operations, ENDPOINTS.len());
        let build = &paths["/api/v1/builds/{number}"]["get"];
        assert_eq!(build["parameters"][0]["name"], "number");
        assert_eq!(paths["/api/v1/pins/{what}"]["delete"]["x-ondine-right"], "pin");
        let mut references = Vec::new();
        members(&document, "$ref", &mut references);
        assert!(references.len() > 20, "{references:?}");
        for reference in references {
            assert!(
                document.pointer(reference.trim_start_matches('#')).is_some(),
                "nothing is at {reference}"
            );
        }
        let retry = &paths["/api/v1/failures/{what}/retry"]["post"]["requestBody"];
        assert!(retry.to_string().contains("/RetryRequest"), "{retry}");
        let request = &document["components"]["schemas"]["RequestStatus"];
        assert_eq!(request["properties"]["asked_at"]["description"], "Unix seconds of the first asking.");
    }
}
