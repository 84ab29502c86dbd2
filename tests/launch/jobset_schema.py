"""What the API server accepts of a JobSet, as far as our template goes.

Written for these tests after the public reference of JobSet v1alpha2, batch/v1 Job and core/v1 Pod. It
knows the fields that the template uses and their neighbours, and takes no other: the real server would drop a misspelt
field without a word.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others; `required` names some of them."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


METADATA = fields(name=TEXT, namespace=TEXT, labels=WORDS, annotations=WORDS)
RESOURCES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
CONTAINER = fields(
    "name image", name=TEXT, image=TEXT, workingDir=TEXT, command=several(TEXT), args=several(TEXT),
    env=several(fields("name", name=TEXT, value={"type": "string"})),
    ports=several(fields("containerPort", containerPort=PORT, name=TEXT)),
    resources=fields(limits=RESOURCES, requests=RESOURCES),
    volumeMounts=several(fields("name mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})))
POD = fields(
    "containers restartPolicy", containers=several(CONTAINER), restartPolicy=one_of("Never", "OnFailure"),
    terminationGracePeriodSeconds=COUNT, nodeSelector=WORDS, serviceAccountName=TEXT,
    volumes=several(fields("name", name=TEXT, persistentVolumeClaim=fields("claimName", claimName=TEXT))))
EXIT_CODES = fields("operator values", containerName=TEXT, operator=one_of("In", "NotIn"), values=several(COUNT))
JOB = fields(
    "template", parallelism=COUNT, completions=COUNT, completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    podFailurePolicy=fields("rules", rules=several(fields(
        "action", action=one_of("FailJob", "FailIndex", "Ignore", "Count"), onExitCodes=EXIT_CODES))),
    template=fields("spec", metadata=METADATA, spec=POD))
FAILURE_POLICY = fields(
    maxRestarts=COUNT, restartStrategy=one_of("Recreate", "BlockingRecreate"), rules=several(fields(
        "name action", name=TEXT, action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        onJobFailureReasons=several(one_of("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                                           "MaxFailedIndexesExceeded", "PodFailurePolicy")))))
JOB_SET = fields(
    "apiVersion kind metadata spec", apiVersion={"const": "jobset.x-k8s.io/v1alpha2"}, kind={"const": "JobSet"},
    metadata=METADATA, spec=fields(
        "replicatedJobs", failurePolicy=FAILURE_POLICY, replicatedJobs=several(fields(
            "name template", name=TEXT, replicas=COUNT, template=fields("spec", metadata=METADATA, spec=JOB)))))
