"""Values of the modules, as each environment gives them, against AWS's own rules.

botocore's service models carry them: enums, patterns, lengths and bounds. What AWS says in prose only (RPUs of
Redshift, days of a log, CIDRs) is in no model, and what only a plan knows (`each.key`, another's ARN) is left out.

    python deploy/terraform/values.py [DIRECTORY]      where DIRECTORY has modules and envs; this one, if not said
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import hcl2
from botocore.model import Shape

RULES = {
    "aws_availability_zones.state": "ec2 AvailabilityZoneState",
    "aws_budgets_budget.budget_type": "budgets BudgetType",
    "aws_budgets_budget.limit_unit": "budgets UnitValue",
    "aws_budgets_budget.notification.comparison_operator": "budgets ComparisonOperator",
    "aws_budgets_budget.notification.notification_type": "budgets NotificationType",
    "aws_budgets_budget.notification.threshold": "budgets NotificationThreshold",
    "aws_budgets_budget.notification.threshold_type": "budgets ThresholdType",
    "aws_budgets_budget.time_unit": "budgets TimeUnit",
    "aws_cloudwatch_log_group.name": "logs LogGroupName",
    "aws_ecr_repository.encryption_configuration.encryption_type": "ecr EncryptionType",
    "aws_ecr_repository.image_tag_mutability": "ecr ImageTagMutability",
    "aws_ecr_repository.name": "ecr RepositoryName",
    "aws_eip.domain": "ec2 DomainType",
    "aws_eks_addon.resolve_conflicts_on_update": "eks ResolveConflicts",
    "aws_eks_cluster.access_config.authentication_mode": "eks AuthenticationMode",
    "aws_eks_cluster.enabled_cluster_log_types": "eks LogType",
    "aws_eks_cluster.name": "eks ClusterName",
    "aws_eks_node_group.capacity_type": "eks CapacityTypes",
    "aws_eks_node_group.instance_types": "ec2 InstanceType",
    "aws_eks_node_group.scaling_config.desired_size": "eks ZeroCapacity",
    "aws_eks_node_group.scaling_config.max_size": "eks Capacity",
    "aws_eks_node_group.scaling_config.min_size": "eks ZeroCapacity",
    "aws_eks_node_group.update_config.max_unavailable": "eks NonZeroInteger",
    "aws_flow_log.traffic_type": "ec2 TrafficType",
    "aws_iam_role.name": "iam roleNameType",
    "aws_iam_role_policy.name": "iam policyNameType",
    "aws_iam_role_policy_attachment.policy_arn": "iam arnType",
    "aws_kms_alias.name": "kms AliasNameType",
    "aws_kms_key.deletion_window_in_days": "kms PendingWindowInDaysType",
    "aws_kms_key.description": "kms DescriptionType",
    "aws_launch_template.block_device_mappings.ebs.volume_type": "ec2 VolumeType",
    "aws_launch_template.metadata_options.http_tokens": "ec2 LaunchTemplateHttpTokensState",
    "aws_msk_cluster.broker_node_group_info.instance_type": "kafka __stringMin5Max32",
    "aws_msk_cluster.broker_node_group_info.storage_info.ebs_storage_info.volume_size": "kafka __integerMin1Max16384",
    "aws_msk_cluster.cluster_name": "kafka __stringMin1Max64",
    "aws_msk_cluster.encryption_info.encryption_in_transit.client_broker": "kafka ClientBroker",
    "aws_msk_cluster.enhanced_monitoring": "kafka EnhancedMonitoring",
    "aws_msk_cluster.kafka_version": "kafka __stringMin1Max128",
    "aws_msk_cluster.number_of_broker_nodes": "kafka __integerMin1Max15",
    "aws_redshiftserverless_namespace.log_exports": "redshift-serverless LogExport",
    "aws_redshiftserverless_namespace.namespace_name": "redshift-serverless NamespaceName",
    "aws_redshiftserverless_usage_limit.breach_action": "redshift-serverless UsageLimitBreachAction",
    "aws_redshiftserverless_usage_limit.period": "redshift-serverless UsageLimitPeriod",
    "aws_redshiftserverless_usage_limit.usage_type": "redshift-serverless UsageLimitUsageType",
    "aws_redshiftserverless_workgroup.workgroup_name": "redshift-serverless WorkgroupName",
    "aws_s3_bucket_lifecycle_configuration.rule.status": "s3 ExpirationStatus",
    "aws_s3_bucket_lifecycle_configuration.rule.transition.storage_class": "s3 TransitionStorageClass",
    "aws_s3_bucket_ownership_controls.rule.object_ownership": "s3 ObjectOwnership",
    "aws_s3_bucket_server_side_encryption_configuration.rule.apply_server_side_encryption_by_default.sse_algorithm":
        "s3 ServerSideEncryption",
    "aws_s3_bucket_versioning.versioning_configuration.status": "s3 BucketVersioningStatus",
    "aws_vpc_endpoint.vpc_endpoint_type": "ec2 VpcEndpointType",
}  # fmt: skip
"""Attribute -> service and shape that has its rule. All that we set and botocore knows a rule of."""

QUOTE = '"'
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
Scope = Mapping[str, Any]
"""What references stand for: `var.name`, `local.zones`, `notification.key`."""


@cache
def tree(text: str) -> Mapping[str, Any]:
    return dict(hcl2.loads(text))


def parsed(path: Path) -> Mapping[str, Any]:
    return tree(path.read_text())


def known(value: Any, scope: Scope) -> Any:
    """A value with its references looked up; None for one that only a plan would know."""
    if isinstance(value, list):
        return [known(each, scope) for each in value]
    if isinstance(value, dict):
        return {name.strip(QUOTE): known(each, scope) for name, each in value.items() if name != "__is_block__"}
    if not isinstance(value, str):
        return value
    if not value.startswith('"'):
        found: Any = scope
        first, *rest = value[2:-1].split(".")
        for name in (f"{first}.{rest[0]}" if rest else first, *rest[1:]):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found
    text = REFERENCE.sub(lambda reference: str(known(reference[0], scope) or reference[0]), value[1:-1])
    return None if "${" in text else text


def scopes(root: Path, environment: Path) -> Iterator[tuple[Path, Scope]]:
    """Each module, and what its references stand for in an environment."""

    def variables(module: Path, given: Scope) -> dict[str, Any]:
        entries = parsed(module / "variables.tf").get("variable", [])
        declared = {name.strip(QUOTE): body for entry in entries for name, body in entry.items()}
        return {f"var.{name}": given.get(name, known(body.get("default"), {})) for name, body in declared.items()}

    def calls(path: Path, scope: Scope) -> Iterator[tuple[Path, Scope]]:
        for entry in parsed(path / "main.tf").get("module", []):
            for arguments in entry.values():
                given = known(arguments, scope)
                module = root / "modules" / Path(given["source"]).name
                inner = variables(module, given)
                yield module, inner
                yield from calls(module, inner)

    main = parsed(environment / "main.tf")
    here = {f"local.{name}": value for each in main["locals"] for name, value in known(each, {}).items()}
    yield from calls(environment, variables(environment, {}) | here)


def settings(where: str, body: Mapping[str, Any], scope: Scope) -> Iterator[tuple[str, Any]]:
    """Each attribute below a body, by its path, with each of its values that is known."""
    for name, value in body.items():
        for each in value if isinstance(value, list) else [value]:
            if name == "dynamic":
                yield from repeated(where, each, scope)
            elif isinstance(each, dict):
                yield from settings(f"{where}.{name}", each, scope)
            elif (found := known(each, scope)) is not None:
                yield from ((f"{where}.{name}", one) for one in (found if isinstance(found, list) else [found]))


def repeated(where: str, block: Mapping[str, Any], scope: Scope) -> Iterator[tuple[str, Any]]:
    """Settings of a dynamic block, once for each entry of a map that is written out."""
    for quoted, body in block.items():
        label, entries = quoted.strip(QUOTE), body["for_each"]
        for key, value in entries.items() if isinstance(entries, dict) else ():
            inner = {**scope, f"{label}.key": key.strip(QUOTE), f"{label}.value": known(value, scope)}
            yield from settings(f"{where}.{label}", body["content"][0], inner)


@cache
def shape(rule: str) -> Shape:
    service, _, name = rule.partition(" ")
    return botocore.session.get_session().get_service_model(service).shape_for(name)


def fault(value: Any, rule: str) -> str | None:
    """What AWS would say to a value."""
    said = shape(rule).metadata
    if "enum" in said:
        return None if value in said["enum"] else f"none of {', '.join(said['enum'][:8])}"
    if "pattern" in said and not re.fullmatch(said["pattern"], str(value)):
        return f"not like {said['pattern']}"
    size = len(value) if isinstance(value, str) else value
    if not said.get("min", size) <= size <= said.get("max", size):
        return f"not of {said.get('min', 'any')} to {said.get('max', 'any')}"
    return None


def held(root: Path) -> Iterator[tuple[str, str, Any]]:
    """Each known value that has a rule: where it stands, its attribute, the value."""
    for environment in sorted((root / "envs").iterdir()):
        for module, scope in scopes(root, environment):
            content = parsed(module / "main.tf")
            entries = [*content.get("resource", []), *content.get("data", [])]
            for kind, named in ((kind.strip(QUOTE), named) for entry in entries for kind, named in entry.items()):
                for label, body in named.items():
                    where = f"{environment.name}, modules/{module.name}, {label.strip(QUOTE)}"
                    for attribute, value in settings(kind, body, scope):
                        if attribute in RULES:
                            yield where, attribute, value


def main(root: Path) -> int:
    """Print what AWS would refuse, and each rule that says nothing or was asked nothing; 0 where there is neither."""
    values = list(held(root))
    found = [
        f"{where}: {attribute} is {value}, {wrong}"
        for where, attribute, value in values
        if (wrong := fault(value, RULES[attribute]))
    ]
    found += [
        f"{attribute}: {rule} has no rule"
        for attribute, rule in RULES.items()
        if not shape(rule).metadata.keys() & {"enum", "pattern", "min", "max"}
    ]
    idle = RULES.keys() - {attribute for _, attribute, _ in values}
    found += [f"{attribute}: no module sets it to anything known" for attribute in sorted(idle)]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(values)} values against {len(RULES)} rules of AWS: {len(found)} wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent))
