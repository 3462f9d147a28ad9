output "cluster_name" {
  description = "For aws eks update-kubeconfig, and for the pods' identities"
  value       = aws_eks_cluster.this.name
}

output "node_security_group_id" {
  description = "Security group of nodes and pods"
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}
