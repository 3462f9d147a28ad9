output "roles" {
  description = "Role of each service account"
  value       = { for name, role in aws_iam_role.stage : name => role.arn }
}
