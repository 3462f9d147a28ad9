output "host" {
  description = "PIPELINE_WAREHOUSE__HOST"
  value       = aws_redshiftserverless_workgroup.this.endpoint[0].address
}

output "workgroup_name" {
  description = "Whose temporary credentials load asks for"
  value       = aws_redshiftserverless_workgroup.this.workgroup_name
}

output "workgroup_arn" {
  description = "For the policy of load"
  value       = aws_redshiftserverless_workgroup.this.arn
}

output "copy_role_arn" {
  description = "The role that COPY takes"
  value       = aws_iam_role.copy.arn
}
