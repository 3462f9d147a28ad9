output "bootstrap_servers" {
  description = "PIPELINE_KAFKA__BOOTSTRAP_SERVERS"
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_iam
}

output "cluster_arn" {
  description = "For the policies of the stages"
  value       = aws_msk_cluster.this.arn
}
