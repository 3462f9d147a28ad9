output "host" {
  description = "PIPELINE_WAREHOUSE__HOST"
  value       = aws_redshiftserverless_workgroup.this.endpoint[0].address
}

output "database" {
  description = "PIPELINE_WAREHOUSE__DATABASE"
  value       = aws_redshiftserverless_namespace.this.db_name
}

output "workgroup_name" {
  description = "PIPELINE_WAREHOUSE__WORKGROUP: whose temporary credentials the stages ask for"
  value       = aws_redshiftserverless_workgroup.this.workgroup_name
}

output "workgroup_arn" {
  description = "For the policy of load"
  value       = aws_redshiftserverless_workgroup.this.arn
}

output "copy_role_arn" {
  description = "PIPELINE_WAREHOUSE__IAM_ROLE"
  value       = aws_iam_role.copy.arn
}
