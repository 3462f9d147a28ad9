output "settings" {
  description = "What the overlay deploy/k8s/overlays/aws needs, as PIPELINE_ variables"
  value       = module.pipeline.settings
}

output "registry_url" {
  description = "Where the image is pushed to"
  value       = module.pipeline.registry_url
}

output "cluster_name" {
  description = "For aws eks update-kubeconfig"
  value       = module.pipeline.cluster_name
}
